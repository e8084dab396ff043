"""What stops a run whose whitening fails, whose numbers are not finite, or whose embeddings have collapsed."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from wmse.config import RunSpec
from wmse.distributed import ALONE, World
from wmse.errors import TrainingError
from wmse.methods import Method, StepOutput
from wmse.whitening import SingularCovarianceError, check_factorisations

DIVERGED = (
    "Usual causes: a learning rate (lr) that is too high, a warm-up that is too short, or bf16 (avoided by "
    "`precision: fp32` under `parameters`). What was saved before this step is kept"
)
# Steps with equal embeddings after which a run is over. A last layer that starts at zero needs a few to leave them.
COLLAPSED_STEPS = 100


class StepGuard:
    """Stops a run whose whitening failed, whose loss or gradient is not finite, or whose embeddings stay all equal.

    On the CPU a step is judged at once, before it changes a parameter. On a GPU, where that would make the host wait,
    the figures are copied to the host in the background and read one step later, when they have long arrived; a
    checkpoint is written only after they were read. Every method raises TrainingError with the run and the step.

    All processes of a run judge the same figures, those of the whole batch.
    """

    def __init__(self, spec: RunSpec, steps_per_epoch: int, method: Method, world: World = ALONE) -> None:
        self.spec, self.steps_per_epoch, self.method, self.world = spec, steps_per_epoch, method, world
        self.parameters = list(method.parameters())  # going through the modules takes as long as the norm
        self.deferred = self.parameters[0].is_cuda
        self.pending: tuple[int, Tensor, Tensor | None, torch.cuda.Event] | None = None
        self.equal_steps = 0  # without a difference between embeddings, until now

    def check(self, step: int, output: StepOutput) -> None:
        """Judge a step, or on a GPU the one before it; to be called between its backward pass and its update."""
        figures, info = self._figures(output)
        if not self.deferred:
            self._judge(step, figures, info)
            return
        self.flush()
        host_info = None if info is None else info.to("cpu", non_blocking=True)
        host_figures = figures.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.pending = (step, host_figures, host_info, event)

    def flush(self) -> None:
        """Judge the step that is still pending."""
        if self.pending:
            step, figures, info, event = self.pending
            self.pending = None
            event.synchronize()
            self._judge(step, figures, info)

    def check_state(self, step: int) -> None:
        """Judge the pending step, and every parameter and buffer as they are after `step` steps."""
        self.flush()
        values = [value for value in self.method.state_dict().values() if value.is_floating_point()]
        if not get_total_norm(values).isfinite():
            raise self._error(step - 1, f"the parameters are not finite after it. {DIVERGED}")

    def _figures(self, output: StepOutput) -> tuple[Tensor, Tensor | None]:
        """On the device: the loss, the norm of the whole gradient, the largest range of an embedding's dimension; and
        the states of the factorisations.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        ends = output.embeddings.amax(dim=1), -output.embeddings.amin(dim=1)
        loss, *ends = (self.world.each(x) for x in (output.loss.detach().double(), *ends))
        span = ends[0].amax(dim=0) + ends[1].amax(dim=0)
        figures = loss.mean(), get_total_norm(gradients), span.amax()
        info = output.factorisations
        if info is not None:
            info = torch.cat(self.world.each(info).unbind(), dim=-1)
        return torch.stack([figure.double() for figure in figures]), info

    def _judge(self, step: int, figures: Tensor, info: Tensor | None) -> None:
        loss, gradient, span = figures.tolist()
        if not math.isfinite(span):
            raise self._error(step, f"the embeddings are not finite. {DIVERGED}")
        if info is not None:
            try:
                check_factorisations(info, self.spec.w_size, self.spec.embedding)
            except SingularCovarianceError as error:
                raise self._error(step, str(error)) from None
        if not math.isfinite(loss):
            raise self._error(step, f"the loss is not finite. {DIVERGED}")
        if not math.isfinite(gradient):
            raise self._error(step, f"the gradient is not finite, with a loss of {loss:.4g}. {DIVERGED}")
        self.equal_steps = self.equal_steps + 1 if span == 0 else 0
        if self.equal_steps >= COLLAPSED_STEPS and not self.method.collapse_expected:
            raise self._error(
                step,
                f"for {COLLAPSED_STEPS} steps the embeddings of all images have been equal to the last bit: the "
                "network has collapsed for good. Lower lr, or lengthen the warm-up",
            )

    def _error(self, step: int, problem: str) -> TrainingError:
        return TrainingError(f"{self.spec.run}: step {step} (epoch {step // self.steps_per_epoch + 1}): {problem}")
