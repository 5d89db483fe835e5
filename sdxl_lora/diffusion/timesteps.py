"""Densities of training timesteps, as functions of a number drawn uniformly from [0, 1).

Timestep 0 is nearly the image, the last one nearly noise. docs/timestep_densities.png shows the densities. Draws
nothing itself; see noise.py.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from scipy.special import betaincinv

from sdxl_lora.config.sections.objective import TimestepConfig
from sdxl_lora.errors import ConfigError


@dataclass(frozen=True)
class TimestepDensity:
    """A density over [min_timestep, max_timestep), given for the relative place in [0, 1).

    kind:
        "uniform".
        "logit_normal": the place is 1 / (1 + exp(-x)), x normal with logit_mean and logit_std (arXiv:2403.03206).
        "beta": Beta(beta_alpha, beta_beta).
        "biased": uniform but bias_multiplier times as dense in the places [bias_begin, bias_end).
    """

    kind: str = "uniform"
    min_timestep: int = 0
    max_timestep: int | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    beta_alpha: float = 1.0
    beta_beta: float = 1.0
    bias_begin: float = 0.0
    bias_end: float = 1.0
    bias_multiplier: float = 1.0

    def place(self, uniform: float) -> float:
        """Return the place in [0, 1] below which a share `uniform` of all draws falls."""
        if self.kind == "uniform":
            return uniform
        if self.kind == "logit_normal":
            if uniform <= 0:
                return 0.0
            return 1 / (1 + math.exp(-NormalDist(self.logit_mean, self.logit_std).inv_cdf(uniform)))
        if self.kind == "beta":
            return float(betaincinv(self.beta_alpha, self.beta_beta, uniform))
        if self.kind == "biased":
            return biased_place(uniform, self.bias_begin, self.bias_end, self.bias_multiplier)
        raise ValueError(f"the kind of timesteps is {self.kind!r}, it must be uniform, logit_normal, beta or biased")

    def timestep(self, uniform: float, num_train_timesteps: int) -> int:
        """Return the timestep for a number drawn uniformly from [0, 1)."""
        end = num_train_timesteps if self.max_timestep is None else self.max_timestep
        steps = end - self.min_timestep
        return self.min_timestep + min(int(self.place(uniform) * steps), steps - 1)


UNIFORM = TimestepDensity()


def density_of(config: TimestepConfig, num_train_timesteps: int) -> TimestepDensity:
    """Return the density that the settings describe.

    Raises:
        ConfigError: it includes timesteps that the base lacks.
    """
    first, end = config.min_timestep, config.max_timestep or num_train_timesteps
    if not first < end <= num_train_timesteps:
        raise ConfigError(
            f"min_timestep {first} and max_timestep {end} must be in order, from 0 to {num_train_timesteps}"
        )
    density = TimestepDensity(
        config.timestep_sampling,
        first,
        config.max_timestep,
        config.logit_mean,
        config.logit_std,
        config.timestep_beta_alpha,
        config.timestep_beta_beta,
    )
    if config.timestep_bias_strategy == "none":
        return density
    places = [(timestep - first) / (end - first) for timestep in (config.timestep_bias_begin, config.timestep_bias_end)]
    low, high = bias_range(config.timestep_bias_strategy, config.timestep_bias_portion, *places)
    return replace(
        density, kind="biased", bias_begin=low, bias_end=high, bias_multiplier=config.timestep_bias_multiplier
    )


def biased_place(uniform: float, begin: float, end: float, multiplier: float) -> float:
    """Return the `uniform` quantile of a density that is `multiplier` in [begin, end) and 1 elsewhere."""
    mass = uniform * (1 + (multiplier - 1) * (end - begin))
    if mass < begin:
        return mass
    if mass < begin + multiplier * (end - begin):
        return begin + (mass - begin) / multiplier
    return mass - (multiplier - 1) * (end - begin)


def bias_range(strategy: str, portion: float, begin: float, end: float) -> tuple[float, float]:
    """Return the places that a bias makes denser: the "earlier" or "later" `portion`, or "range", begin to end."""
    if strategy == "earlier":
        return 0.0, portion
    if strategy == "later":
        return 1 - portion, 1.0
    return max(0.0, begin), min(1.0, end)
