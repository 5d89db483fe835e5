"""A run's base that draws with one checkpoint's LoRA after another, at one strength after another. Saves no images.

The adapter stays beside the base's weights, in float32, and the base computes as in the training, so that at strength
1 an image is the same as the training's sample at that step.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import nn

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import CheckpointError
from sdxl_lora.lora.formats.adapter import Adapter
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import ADAPTER
from sdxl_lora.lora.targets import exactly
from sdxl_lora.lora.warm_start import layers_of, load_adapters, lokr_factor, without_unread
from sdxl_lora.models.base_source import Base
from sdxl_lora.models.loading import DTYPES, ENCODERS, load_schedulers, load_text_parts, load_vae
from sdxl_lora.models.text_encoders import LiveTextEncoder, TextEncoders
from sdxl_lora.performance.device_memory import free_memory
from sdxl_lora.sampling.generate import generate_image
from sdxl_lora.select.choice import Candidate
from sdxl_lora.training.model import load_base_unet, set_computation
from sdxl_lora.training.samples import guidance_rescale_of

Adapters = dict[str, dict[str, Adapter]]  # by component and canonical module name


class Painter:
    """The base with the LoRA of the last `put_on`; `paint` draws.

    Args:
        first: a LoRA of the run; all others have the same modules.
        texts: of every prompt; read once where no text encoder has trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: Base,
        first: Candidate,
        texts: Iterable[str],
        accelerator,
        info: Callable[[str], None],
    ):
        self.accelerator, device = accelerator, accelerator.device
        adapters, kind = read_adapters(first)
        tokenizers, encoders = load_text_parts(base, DTYPES[config.compute.mixed_precision])
        encoders = [encoder.to(device) for encoder in encoders]
        text = LiveTextEncoder(tokenizers, TextEncoders(*encoders), "", config.captions.max_caption_chunks)
        self.text: LiveTextEncoder | None = text  # None where all prompts have been read
        self.read: dict[str, dict[str, torch.Tensor]] = {}
        self.models: dict[str, nn.Module] = {}
        if any(component != "unet" for component in adapters):
            self.models |= dict(zip(ENCODERS, encoders, strict=True))
        else:
            self.read = {prompt: text.read(prompt) for prompt in set(texts)}
            self.text = None
            del text, encoders
            free_memory()
        self.models["unet"] = load_base_unet(config.compute, base, device, info)
        for component, model in self.models.items():
            if own := adapters.get(component):
                give_adapter(model, component, own, kind)
        compute = replace(config.compute, compile="off", gradient_checkpointing=False)
        set_computation(self.models["unet"], compute, False, info, device)
        self.models = {name: model.to(device).eval() for name, model in self.models.items()}
        self.strength = Strength(self.models.values())
        self.vae = load_vae(base)
        _, self.scheduler = load_schedulers(base, config.objective)
        self.rescale = guidance_rescale_of(config, self.scheduler.config)

    def put_on(self, candidate: Candidate) -> None:
        """Load this LoRA into the models.

        Raises:
            CheckpointError: it cannot be read, or has other modules than the first.
        """
        adapters, _ = read_adapters(candidate)
        try:
            for component, model in self.models.items():
                if own := adapters.get(component):
                    load_adapters(model, component, without_unread(model, component, own)[0])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{candidate.lora} differs from the run's other LoRAs: {error}") from error

    def set_strength(self, strength: float) -> None:
        """Set the LoRA's strength; 0 leaves the base alone."""
        self.strength.set(strength)
        if self.text is not None:
            self.read.clear()  # the text encoders have changed

    def paint(self, prompt: SamplePrompt, repeat: int) -> Image.Image:
        assert prompt.height and prompt.width and prompt.steps and prompt.guidance_scale is not None
        with self.accelerator.autocast():
            return generate_image(
                self.models["unet"],
                self.vae,
                self.scheduler,
                self._embeddings(prompt.text),
                self._embeddings(prompt.negative),
                (prompt.height, prompt.width),
                prompt.steps,
                prompt.guidance_scale,
                prompt.seed_of(repeat),
                self.rescale,
            )

    def _embeddings(self, text: str) -> dict[str, torch.Tensor]:
        if text not in self.read:
            assert self.text is not None, "it was not among the texts that were named"
            self.read[text] = self.text.read(text)
        return self.read[text]


def read_adapters(candidate: Candidate) -> tuple[Adapters, str]:
    """Return a LoRA file's adapters by component, and their kind.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        file = read_lora(candidate.lora)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{candidate.lora} cannot be used: {error}") from error
    adapters: Adapters = {}
    for (component, name), adapter in file.adapters.items():
        adapters.setdefault(component, {})[name] = adapter
    return adapters, next(iter(file.adapters.values())).kind


def give_adapter(model: nn.Module, component: str, adapters: dict[str, Adapter], kind: str) -> None:
    """Add exactly these adapters to a model, with their weights.

    Raises:
        CheckpointError: they do not fit the base.
    """
    try:
        own, _ = without_unread(model, component, adapters)
        add_lora(model, **exactly(layers_of(model, component, own)), kind=kind, lokr_factor=lokr_factor(own.values()))
        load_adapters(model, component, own)
    except ValueError as error:
        raise CheckpointError(f"the run's LoRAs do not fit its base any more: {error}") from error


class Strength:
    """Strength of the adapters of some models; 1 at first."""

    def __init__(self, models: Iterable[nn.Module]):
        layers = [layer for model in models for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        self.layers = [(layer, layer.scaling[ADAPTER]) for layer in layers if ADAPTER in layer.r]

    def set(self, strength: float) -> None:
        for layer, full in self.layers:
            layer.scaling[ADAPTER] = full * strength
