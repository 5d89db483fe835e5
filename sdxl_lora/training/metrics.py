"""Metrics of the steps since the last reading, kept on the device: the host waits only when it reads them.

They include whether a step was NaN or infinite. An optimizer that reads this on the device (torch's fused ones) then
changes no weight in that step or any later one, no matter when the host notices.
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from sdxl_lora.errors import NonFiniteError
from sdxl_lora.run.requests import NOTHING, Asked
from sdxl_lora.run.session import Run


@dataclass(frozen=True)
class StepNumbers:
    """Numbers of steps `first_step` + 1 to `first_step` + `steps`: their mean loss, the last one's gradient norm.

    finite_steps: steps before the first with NaN or infinity, whose loss and norm are then given instead.
    parts: the loss by timestep, and that of preserving the base's predictions, if any.
    images: how many they saw; names: of each step's images, as far as this process knows them.
    """

    first_step: int
    steps: int
    loss: float
    grad_norm: float
    parts: dict[str, float]
    finite_steps: int
    stop_requested: bool
    asked: Asked
    images: int
    names: list[Collection[str]]


class StepMetrics:
    """Metrics of steps: `begin`, `add` for each micro-step, `close` and `guard` for each step; `flush` to read them.

    Args:
        first_step: steps done before.
        bins: ranges of timesteps to report the loss for.
        waiting: makes the context in which the host waits; called with "device".
    """

    def __init__(
        self,
        device: torch.device,
        bins: int,
        num_train_timesteps: int,
        first_step: int = 0,
        waiting: Callable[[str], AbstractContextManager] = nullcontext,
    ):
        self.device, self.bins, self.num_train_timesteps, self.waiting = device, bins, num_train_timesteps, waiting
        self.found_inf = torch.zeros((), device=device)
        self.step_sums = self._zeros()
        self._start_from(first_step)

    def _zeros(self) -> torch.Tensor:
        """Return zeros for sums over the processes: losses, requests to stop, preserving losses and their number,
        requests to save and to draw, losses by timestep and their numbers."""
        return torch.zeros(6 + 2 * self.bins, device=self.device)

    def _start_from(self, step: int) -> None:
        self.first_step, self.steps, self.sums = step, 0, self._zeros()
        self.finite_steps, self.grad_norm = torch.zeros((2,), device=self.device)
        self.images: list[int] = []
        self.names: list[Collection[str]] = []

    def begin(self, images: int, names: Collection[str]) -> None:
        """Begin a step of so many images over all processes."""
        self.images.append(images)
        self.names.append(names)

    def add(self, losses: torch.Tensor, timesteps: torch.Tensor, preserves: bool = False) -> None:
        """Add the losses (B,) of a micro-batch at timesteps (B,), or those of preserving the base's predictions."""
        self.step_sums[0] += losses.detach().sum()
        if preserves:
            self.step_sums[2] += losses.detach().sum()
            self.step_sums[3] += len(losses)
            return
        by_timestep = sums_by_timestep(losses, timesteps, self.num_train_timesteps, self.bins)
        self.step_sums[6:] += by_timestep.flatten()

    def close(self, accelerator, stop_requested: bool, is_spoilt: bool = False, asked: Asked = NOTHING) -> None:
        """Sum over the processes, after all micro-steps of the step."""
        self.step_sums[0] = torch.nan if is_spoilt else self.step_sums[0] / self.images[-1]
        for place, is_asked in zip((1, 4, 5), (stop_requested, *asked), strict=True):
            if is_asked:  # otherwise nothing is launched on the device
                self.step_sums[place] += 1
        self.step_sums = accelerator.reduce(self.step_sums, "sum")

    def guard(self, grad_norm: torch.Tensor, has_scaler: bool) -> None:
        """Note the norm and whether the step is finite; fp16's scaler itself skips a step with infinite gradients."""
        loss_is_finite = self.step_sums[0].isfinite()
        is_finite = loss_is_finite if has_scaler else loss_is_finite & grad_norm.isfinite()
        was_finite = 1 - self.found_inf
        self.found_inf = torch.maximum(self.found_inf, (~is_finite).float())
        self.grad_norm = torch.where(was_finite.bool(), grad_norm, self.grad_norm)
        self.finite_steps = self.finite_steps + (1 - self.found_inf)
        self.sums = self.sums + self.step_sums
        self.step_sums = self._zeros()
        self.steps += 1

    def numbers(self) -> StepNumbers:
        """Return the numbers so far. Waits for the device."""
        on_device = torch.cat([self.sums, torch.stack([self.grad_norm, self.finite_steps])])
        with self.waiting("device"):
            loss, stops, preserving, preserved, saves, drawings, *by_timestep, norm, finite_steps = on_device.tolist()
        sums = torch.tensor(by_timestep).reshape(2, self.bins)
        return StepNumbers(
            self.first_step,
            self.steps,
            loss / max(1, self.steps),
            norm,
            means_by_timestep(sums, self.num_train_timesteps)
            | ({"preservation_loss": preserving / preserved} if preserved else {}),
            round(finite_steps),
            stops > 0,
            Asked(saves > 0, drawings > 0),
            sum(self.images),
            self.names,
        )

    def flush(self) -> StepNumbers:
        """Return the numbers so far and start anew. Waits for the device."""
        numbers = self.numbers()
        self._start_from(self.first_step + self.steps)
        return numbers


def check_finite(numbers: StepNumbers, run: Run) -> None:
    """Raise NonFiniteError, which names the step's images, if one of the steps was not finite."""
    if numbers.finite_steps == numbers.steps:
        return
    step = numbers.first_step + numbers.finite_steps + 1
    names = ", ".join(sorted(numbers.names[numbers.finite_steps]))
    raise NonFiniteError(
        f"step {step}: loss {numbers.loss}, gradient norm {numbers.grad_norm}; the weights were not changed. "
        f"Images of this step: {names}. Lower the learning rate, or check these images; "
        f"the newest checkpoint is {run.status['last_checkpoint'] or 'none yet'}."
    )


def sums_by_timestep(losses, timesteps, num_train_timesteps: int, bins: int) -> torch.Tensor:
    """Return sum and number of the losses (B,) whose timesteps (B,) lie in each of equal ranges: (2, bins)."""
    sums = torch.zeros(2, bins, device=losses.device)
    if not bins:
        return sums
    place = timesteps * bins // num_train_timesteps
    return sums.index_add_(1, place, torch.stack([losses.detach().float(), torch.ones_like(losses)]))


def means_by_timestep(sums: torch.Tensor, num_train_timesteps: int) -> dict[str, float]:
    """Return {"loss_timesteps_0_249": mean, ...} of `sums_by_timestep`, for ranges with losses."""
    bins = sums.shape[1]
    edges = [-(-num_train_timesteps * i // max(bins, 1)) for i in range(bins + 1)]
    return {
        f"loss_timesteps_{edges[i]}_{edges[i + 1] - 1}": total / count
        for i, (total, count) in enumerate(sums.T.tolist())
        if count
    }
