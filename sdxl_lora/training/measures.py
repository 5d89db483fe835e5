"""Numbers that tell how the learning goes, beside the loss of a step. Knows no files."""

import torch


def sums_by_timestep(losses, timesteps, num_train_timesteps: int, bins: int) -> torch.Tensor:
    """(2, bins): the sum and the number of the losses (B,) whose timesteps (B,) lie in each of equal ranges."""
    sums = torch.zeros(2, bins, device=losses.device)
    if not bins:
        return sums
    place = timesteps * bins // num_train_timesteps
    return sums.index_add_(1, place, torch.stack([losses.detach().float(), torch.ones_like(losses)]))


def means_by_timestep(sums: torch.Tensor, num_train_timesteps: int) -> dict[str, float]:
    """{"loss_timesteps_0_249": mean, ...} of `sums_by_timestep`, for the ranges that losses fell into."""
    bins = sums.shape[1]
    edges = [-(-num_train_timesteps * i // max(bins, 1)) for i in range(bins + 1)]
    return {
        f"loss_timesteps_{edges[i]}_{edges[i + 1] - 1}": total / count
        for i, (total, count) in enumerate(sums.T.tolist())
        if count
    }
