"""Batch norm over the images of all processes, on every device (torch's own SyncBatchNorm refuses CPUs)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from wmse.whitening import at_least_float32


def synchronize_batch_norm(module: nn.Module, processes: int) -> None:
    """Let the batch norms in `module` use the statistics of all processes, which have equally many values each.

    The modules stay the same objects, with the names and values of their parameters and buffers.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.__class__ = SynchronizedBatchNorm
            part.processes = processes


class SynchronizedBatchNorm(_BatchNorm):
    """A batch norm whose statistics in train mode are those of `processes` equal parts of a batch."""

    processes: int

    def _check_input_dim(self, input: Tensor) -> None:
        """Of any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, var = _Normalization.apply(input, self.weight, self.bias, self.eps, self.processes)
        n = self.processes * input.numel() // input.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * (n / (n - 1))).to(self.running_var.dtype), self.momentum)
        return output


class _Normalization(torch.autograd.Function):
    """(n, C, ...) normalised by mean and variance over all but C and over all processes, which it also returns.

    Means and variances are combined, not sums of squares, whose difference would lose the variance's digits.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = at_least_float32(x)
        own = torch.stack(torch.var_mean(wide, [0, *range(2, x.dim())], correction=0))
        parts = [torch.empty_like(own) for _ in range(processes)]
        dist.all_gather(parts, own)
        vars_, means = torch.stack(parts, dim=1)
        mean = means.mean(dim=0)
        var = vars_.mean(dim=0) + (means - mean).square().mean(dim=0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.processes = eps, processes
        ctx.mark_non_differentiable(mean, var)
        return batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        inverse = (var + ctx.eps).rsqrt()
        shape = [1, -1] + [1] * (x.dim() - 2)
        dims = [0, *range(2, x.dim())]
        wide, normal = at_least_float32(grad), (at_least_float32(x) - mean.view(shape)).mul_(inverse.view(shape))
        own = torch.stack([wide.sum(dims), (wide * normal).sum(dims)])
        total = own.clone()
        dist.all_reduce(total)
        # Mean and variance depend on x, too, which takes these means away from the gradient.
        mean_grad, mean_slope = (total / (ctx.processes * x.numel() // x.shape[1])).view(2, *shape)
        input_grad = (wide - normal.mul_(mean_slope) - mean_grad).mul_((weight * inverse).view(shape))
        bias_grad, weight_grad = own
        return input_grad.to(x.dtype), weight_grad, bias_grad, None, None
