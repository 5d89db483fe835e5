"""The numbers of the steps since the last look, kept on the device: looking is the only time the host waits for it.

Also whether one of them was NaN or infinite. An optimizer that can be told so on the device (torch's fused ones) then
changes no weight, in that step and in every later one, whenever the host gets to know of it.
"""

from dataclasses import dataclass

import torch

from sdxl_lora.training.measures import means_by_timestep, sums_by_timestep


@dataclass(frozen=True)
class Numbers:
    """Of `steps` steps: their mean loss, and of the last one the norm of the gradients.

    finite_steps: how many there were before the first with NaN or infinity, whose loss and norm these then are.
    """

    steps: int
    loss: float
    grad_norm: float
    by_timestep: dict[str, float]
    finite_steps: int
    is_asked_to_stop: bool


class Tally:
    """`add` for each micro-step, `close` and `guard` for each step, `look` when the numbers are wanted."""

    def __init__(self, device: torch.device, bins: int, num_train_timesteps: int):
        self.device, self.bins, self.num_train_timesteps = device, bins, num_train_timesteps
        self.found_inf = torch.zeros((), device=device)
        self.step_sums = self._zeros()
        self._begin()

    def _zeros(self) -> torch.Tensor:
        """Sums over the processes: losses, requests to stop, losses by timestep and their numbers."""
        return torch.zeros(2 + 2 * self.bins, device=self.device)

    def _begin(self) -> None:
        self.steps, self.sums = 0, self._zeros()
        self.finite_steps, self.grad_norm = torch.zeros((2,), device=self.device)

    def add(self, losses: torch.Tensor, timesteps: torch.Tensor) -> None:
        """The losses (B,) of a micro-batch at its timesteps (B,)."""
        self.step_sums[0] += losses.detach().sum()
        by_timestep = sums_by_timestep(losses, timesteps, self.num_train_timesteps, self.bins)
        self.step_sums[2:] += by_timestep.flatten()

    def close(self, accelerator, pictures: int, is_asked_to_stop: bool, is_spoilt: bool = False) -> None:
        """All micro-steps of a step of so many pictures are added: sum over the processes."""
        self.step_sums[0] = torch.nan if is_spoilt else self.step_sums[0] / pictures
        self.step_sums[1] += is_asked_to_stop
        self.step_sums = accelerator.reduce(self.step_sums, "sum")

    def guard(self, grad_norm: torch.Tensor, has_scaler: bool) -> None:
        """Note the norm and what is not finite; fp16's scaler expects infinite gradients, and skips such a step."""
        loss_is_finite = self.step_sums[0].isfinite()
        is_finite = loss_is_finite if has_scaler else loss_is_finite & grad_norm.isfinite()
        was_finite = 1 - self.found_inf
        self.found_inf = torch.maximum(self.found_inf, (~is_finite).float())
        self.grad_norm = torch.where(was_finite.bool(), grad_norm, self.grad_norm)
        self.finite_steps = self.finite_steps + (1 - self.found_inf)
        self.sums = self.sums + self.step_sums
        self.step_sums = self._zeros()
        self.steps += 1

    def look(self, forget: bool = True) -> Numbers:
        """Waits for the device. With `forget` the next look is at later steps alone."""
        loss, stops, *by_timestep, norm, finite_steps = torch.cat(
            [self.sums, torch.stack([self.grad_norm, self.finite_steps])]
        ).tolist()
        sums = torch.tensor(by_timestep).reshape(2, self.bins)
        numbers = Numbers(
            self.steps,
            loss / max(1, self.steps),
            norm,
            means_by_timestep(sums, self.num_train_timesteps),
            round(finite_steps),
            stops > 0,
        )
        if forget:
            self._begin()
        return numbers
