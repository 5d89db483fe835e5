"""Settings for measuring and drawing samples during training."""

import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from sdxl_lora.config.fields import FREE, PATH, SAME, SET, applies_when
from sdxl_lora.config.sample_prompt import parse_prompt
from sdxl_lora.errors import ConfigError

WHEN_DRAWN = applies_when(validation_prompt=SET, validation_prompts_file=SET)
WHEN_EVALUATED = applies_when(validation_prompt=SET, validation_prompts_file=SET, validation_split=SET)
WHEN_JUDGED = applies_when(validation_split=SET, best_by=("similarity",))


@dataclass(frozen=True)
class EvaluationConfig:
    """Samples and validation."""

    validation_prompt: Annotated[tuple[str, ...], FREE] = ()
    """Prompts to draw with the LoRA during training. Each may end with its own options, as in kohya's trainer, for
    width, height, seed, guidance, steps and negative prompt: "a cat --w 1024 --h 768 --d 42 --l 7.5 --s 30 --n
    blurry"."""
    validation_prompts_file: Annotated[str | None, PATH, FREE] = None
    """Text file with more such prompts, one per line."""
    validation_without_trigger: Annotated[bool, FREE, WHEN_DRAWN] = False
    """Also draw each prompt that has the dataset's trigger word without that word, to see what leaks."""
    num_validation_images: Annotated[int, Gt(0), FREE, WHEN_DRAWN] = 4
    """Images per prompt."""
    validation_epochs: Annotated[int | None, Gt(0), FREE, WHEN_EVALUATED] = None
    """Draw before the first step, every N epochs, and at the end. Default: at most ten times, and not more often than
    every epoch."""
    validation_steps: Annotated[int | None, Gt(0), FREE, WHEN_EVALUATED] = None
    """Draw every N steps instead of every N epochs."""
    validation_inference_steps: Annotated[int, Gt(0), FREE] = 25
    """Denoising steps of a sample image."""
    validation_guidance_scale: Annotated[float, Ge(0), FREE] = 5.0
    """Classifier-free guidance of a sample image."""
    validation_guidance_rescale: Annotated[float | None, Ge(0), FREE] = None
    """How strongly guidance is kept from overexposing images, 0 to 1. Default: 0.7 with a zero-terminal-SNR schedule,
    otherwise 0."""
    similarity_model: Annotated[str | None, PATH, FREE, WHEN_DRAWN] = None
    """Report how similar sample images are to the training images (cosine of embeddings, 1 means identical), using any
    vision model of transformers: a folder or a Hub id, e.g. facebook/dinov2-base or openai/clip-vit-large-patch14."""
    validation_split: Annotated[float, Ge(0), Lt(1), SAME] = 0.0
    """Hold this share of the images out of training and report the loss on them as validation_loss, at fixed timesteps
    with fixed noise, as often as samples are drawn. The checkpoint with the lowest one is kept, and its LoRA file
    too."""
    best_by: Annotated[
        Literal["loss", "similarity"] | None, SAME, applies_when(validation_split=SET, similarity_model=SET)
    ] = None
    """What decides which checkpoint is the best one, to keep it and to end the training: the lowest validation_loss, or
    the highest similarity of samples with the trigger word, by similarity_model. Default: loss."""
    early_stopping_patience: Annotated[int | None, Gt(0), FREE, WHEN_JUDGED] = None
    """End the training after this many validations in a row without an improvement; see best_by."""
    early_stopping_min_delta: Annotated[float, Ge(0), FREE, WHEN_JUDGED] = 0.0
    """A validation counts as better only if it improves by more than this."""

    @property
    def by_similarity(self) -> bool:
        return self.best_by == "similarity"

    @property
    def has_prompts(self) -> bool:
        return bool(self.validation_prompt or self.validation_prompts_file)

    def warn_of_lost_quotes(self) -> None:
        """Warn if there are several one-word prompts, most likely one prompt that lost its quotes."""
        prompts = self.validation_prompt
        if len(prompts) > 1 and not any(" " in prompt.strip() for prompt in prompts):
            one = " ".join(prompts)
            warnings.warn(
                f"validation_prompt has {len(prompts)} prompts of one word each, each drawn separately: if they "
                f'are one, put it in quotes, --validation_prompt "{one}"',
                stacklevel=2,
            )

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = []
        for prompt in self.validation_prompt:
            try:
                parse_prompt(prompt)
            except ConfigError as error:
                problems.append(str(error))
        needs = {
            "validation_without_trigger": self.validation_without_trigger,
            "similarity_model": self.similarity_model,
        }
        problems += [
            f"{name} needs a validation_prompt" for name, given in needs.items() if given and not self.has_prompts
        ]
        if self.by_similarity and self.similarity_model is None:
            problems.append("best_by similarity needs a similarity_model, e.g. facebook/dinov2-base")
        if self.best_by == "loss" and not self.validation_split:
            problems.append("best_by loss needs a validation_split: images whose loss is measured")
        if self.early_stopping_patience is not None and not (self.validation_split or self.by_similarity):
            problems.append(
                "early_stopping_patience needs a validation_split: images whose loss tells when to stop; or best_by "
                "similarity"
            )
        if self.validation_guidance_rescale is not None and self.validation_guidance_rescale > 1:
            problems.append(
                f"validation_guidance_rescale is {self.validation_guidance_rescale}, it must be from 0 to 1"
            )
        return problems
