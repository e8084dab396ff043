"""Optimisers and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from wmse.config import RunSpec


def learning_rate(spec: RunSpec, step: int, steps_per_epoch: int) -> float:
    """The rate of step 0, 1, 2, ...: linear warm-up, then drops near the end ("step") or a half cosine.

    As in the authors' code: step s of the warm-up uses (s + 1) / warmup of the rate, and drops happen between epochs.
    """
    warmup = spec.warmup_epochs * steps_per_epoch or spec.warmup_iterations
    if step < warmup:  # the authors' warm-up sets the rate itself, whatever the drops
        return spec.lr * (step + 1) / warmup
    if spec.schedule == "cosine":
        progress = (step - warmup) / max(spec.epochs * steps_per_epoch - warmup, 1)
        return spec.lr * (1 + math.cos(math.pi * progress)) / 2
    epoch = step // steps_per_epoch
    return spec.lr * spec.lr_drop_factor ** sum(epoch >= spec.epochs - drop for drop in spec.lr_drops)


def build_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Adam with L2 (Section 5), or LARS for ImageNet. `fused` does one pass over the parameters."""
    params = [p for p in model.parameters() if p.requires_grad]  # BYOL's target learns by its average only
    if spec.optimizer == "adam":
        return torch.optim.Adam(params, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    return LARS(params, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


class LARS(torch.optim.Optimizer):
    """SGD with momentum and layer-wise rates (You et al. 2017), with SimCLR's settings.

    Weight matrices and kernels get weight decay and a rate scaled by ``trust * ||w|| / ||g + wd * w||``; biases and
    batch-norm parameters get neither.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    norm_w, norm_u = p.norm(), update.norm()
                    ratio = torch.where((norm_w > 0) & (norm_u > 0), group["trust"] * norm_w / norm_u, 1.0)
                    update = update * ratio
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                velocity = state["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(update * group["lr"])
                p.sub_(velocity)
