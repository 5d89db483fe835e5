"""Settings of the training objective: loss, noise and timesteps."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from sdxl_lora.config.fields import SAME, SET, applies_when

FOR_HUBER = applies_when(loss_type=("huber", "smooth_l1"))
FOR_LOGIT_NORMAL = applies_when(timestep_sampling=("logit_normal",))
FOR_BETA = applies_when(timestep_sampling=("beta",))
FOR_BIAS = applies_when(timestep_bias_strategy=("earlier", "later", "range"))
FOR_HALVES = applies_when(timestep_bias_strategy=("earlier", "later"))
FOR_RANGE = applies_when(timestep_bias_strategy=("range",))


@dataclass(frozen=True)
class ObjectiveConfig:
    """Loss."""

    prediction_type: Annotated[Literal["epsilon", "v_prediction", "flow"] | None, SAME] = None
    """What the UNet predicts; flow is rectified flow. Default: what the base says."""
    flow_shift: Annotated[float | None, Gt(0), SAME, applies_when(prediction_type=(None, "flow"))] = None
    """For bases that predict a flow: above 1, timesteps move towards the noise, in training and in samples. Default:
    what the base's scheduler says, 3 for a single file."""
    loss_type: Annotated[Literal["l2", "huber", "smooth_l1"], SAME] = "l2"
    """l2 is the squared error; the others grow only linearly above huber_c, so that unusual images pull less."""
    huber_c: Annotated[float, Gt(0), SAME, FOR_HUBER] = 0.1
    """Error above which huber and smooth_l1 grow linearly."""
    huber_schedule: Annotated[Literal["constant", "exponential", "snr"], SAME, FOR_HUBER] = "constant"
    """constant: huber_c at every timestep; the others: larger values where there is less noise."""
    snr_gamma: Annotated[float | None, Gt(0), SAME] = None
    """Min-SNR weighting of timesteps: less noisy ones count less; 5 is usual. Correct for epsilon and v-prediction."""
    debiased_estimation: Annotated[bool, SAME] = False
    """Instead of snr_gamma: a weighting that makes noisy timesteps count more for epsilon."""
    zero_terminal_snr: Annotated[bool, SAME] = False
    """Make the last timestep pure noise, in training and in samples. For bases that predict v and were trained this
    way."""
    masked_loss: Annotated[bool, SAME] = False
    """Compute the loss only where the dataset's masks are white, averaged over the white area; images without a mask
    count in full."""
    prior_loss_weight: Annotated[float, Ge(0), SAME] = 1.0
    """Weight of the images marked in the column is_class_image (prior preservation), and of the steps of
    output_preservation."""
    output_preservation: Annotated[float | None, Gt(0), Lt(1), SAME] = None
    """Share of the steps, e.g. 0.3, that keep the base as it is: for captions without the trigger word, the LoRA learns
    to predict what the base predicts. Needs a trigger word and no class images; such a step takes a third longer."""
    preservation_class: Annotated[str | None, SAME, applies_when(output_preservation=SET)] = None
    """What replaces the trigger word in these steps, e.g. cat. Default: the word is left out."""

    def problems(self) -> list[str]:
        """Return a sentence for each pair of conflicting settings."""
        problems = []
        if self.snr_gamma is not None and self.debiased_estimation:
            problems.append("snr_gamma and debiased_estimation cannot be used together: choose one")
        if self.preservation_class is not None and self.output_preservation is None:
            problems.append(
                "preservation_class needs output_preservation: the share of the steps that use it, e.g. 0.3"
            )
        return problems


@dataclass(frozen=True)
class NoiseConfig:
    """Noise."""

    noise_offset: Annotated[float, Ge(0), SAME] = 0.0
    """Add one random number per channel, times this value, to the noise, to learn dark and bright images; 0.03 to 0.1
    is usual."""
    input_perturbation: Annotated[float, Ge(0), SAME] = 0.0
    """Strength of extra noise in the UNet's input that it does not have to predict; 0.1 is usual."""
    multires_noise_iterations: Annotated[int, Ge(0), SAME] = 0
    """Add this many layers of coarser noise (pyramid noise), for the same purpose as noise_offset; 6 is usual."""
    multires_noise_discount: Annotated[float, Ge(0), SAME, applies_when(multires_noise_iterations=SET)] = 0.3
    """Strength of each coarser layer of noise relative to the one before."""


def flow_problems(objective: ObjectiveConfig, noise: NoiseConfig) -> list[str]:
    """Return a sentence for each setting without meaning for a base that predicts a flow."""
    with_flow = "does not go with a base that predicts a flow"
    problems = [
        f"{name} {with_flow}, whose timesteps count as often as they are drawn: use timestep_sampling instead"
        for name in ("snr_gamma", "debiased_estimation")
        if getattr(objective, name)
    ]
    if objective.zero_terminal_snr:
        problems.append(f"zero_terminal_snr {with_flow}: its last timestep is pure noise anyway")
    problems += [
        f"{name} {with_flow}, which learns dark and bright images from pure noise: leave it out"
        for name in ("noise_offset", "multires_noise_iterations")
        if getattr(noise, name)
    ]
    return problems


@dataclass(frozen=True)
class TimestepConfig:
    """Timesteps."""

    min_timestep: Annotated[int, Ge(0), SAME] = 0
    """Lowest timestep to train on; 0 is nearly the image."""
    max_timestep: Annotated[int | None, Gt(0), SAME] = None
    """Train on timesteps below this one. Default: the base's number of timesteps, 1000, nearly pure noise."""
    timestep_sampling: Annotated[Literal["uniform", "logit_normal", "beta"], SAME] = "uniform"
    """How often each timestep is drawn; docs/timestep_densities.png shows it."""
    logit_mean: Annotated[float, SAME, FOR_LOGIT_NORMAL] = 0.0
    """Mean of logit_normal; values above 0 draw noisier timesteps more often."""
    logit_std: Annotated[float, Gt(0), SAME, FOR_LOGIT_NORMAL] = 1.0
    """Standard deviation of logit_normal; above 0."""
    timestep_beta_alpha: Annotated[float, Gt(0), SAME, FOR_BETA] = 1.0
    """First parameter of beta; larger values draw noisier timesteps more often."""
    timestep_beta_beta: Annotated[float, Gt(0), SAME, FOR_BETA] = 1.0
    """Second parameter of beta; larger values draw less noisy timesteps more often."""
    timestep_bias_strategy: Annotated[Literal["none", "earlier", "later", "range"], SAME] = "none"
    """Timesteps to draw more often: the least noisy ones (earlier), the noisiest ones (later), or a range."""
    timestep_bias_multiplier: Annotated[float, Gt(0), SAME, FOR_BIAS] = 1.0
    """How many times as often they are drawn."""
    timestep_bias_portion: Annotated[float, Gt(0), SAME, FOR_HALVES] = 0.25
    """Share of the timesteps that earlier or later stands for."""
    timestep_bias_begin: Annotated[int, Ge(0), SAME, FOR_RANGE] = 0
    """First timestep of the range."""
    timestep_bias_end: Annotated[int, SAME, FOR_RANGE] = 1000
    """End of the range, exclusive."""

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = []
        if self.max_timestep is not None and self.min_timestep >= self.max_timestep:
            problems.append(f"min_timestep {self.min_timestep} must be below max_timestep {self.max_timestep}")
        if not math.isfinite(self.logit_mean):
            problems.append(f"logit_mean is {self.logit_mean}, it must be a number")
        return problems + (
            self._unbiased_problems() if self.timestep_bias_strategy == "none" else self._bias_problems()
        )

    def _unbiased_problems(self) -> list[str]:
        if self.timestep_bias_multiplier != 1:
            return ["timestep_bias_multiplier needs a timestep_bias_strategy: earlier, later or range"]
        return []

    def _bias_problems(self) -> list[str]:
        strategy, problems = self.timestep_bias_strategy, []
        if self.timestep_bias_multiplier == 1:
            problems.append(f"timestep_bias_strategy {strategy} needs a timestep_bias_multiplier other than 1")
        if self.timestep_sampling != "uniform":
            problems.append(f"timestep_bias_strategy needs timestep_sampling uniform, not {self.timestep_sampling}")
        if self.timestep_bias_portion > 1:
            problems.append(f"timestep_bias_portion is {self.timestep_bias_portion}, it must be at most 1")
        first, end = self.min_timestep, self.max_timestep or 1000
        if strategy == "range" and max(first, self.timestep_bias_begin) >= min(end, self.timestep_bias_end):
            problems.append(
                f"timestep_bias_begin {self.timestep_bias_begin} and timestep_bias_end {self.timestep_bias_end} must "
                f"include some of the timesteps {first} to {end}"
            )
        return problems
