"""Models of a run: the frozen base, its adapters, and the settings of their computation."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from sdxl_lora.cache.text_embeddings import TextCache
from sdxl_lora.config.sections.adapter import AdapterConfig
from sdxl_lora.config.sections.compute import ComputeConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.unet_blocks import parse_blocks
from sdxl_lora.data.collate import TextEmbeddings
from sdxl_lora.distributed.accelerator import send_only_what_trains
from sdxl_lora.distributed.gradients import share_parameters
from sdxl_lora.errors import ConfigError
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.lora.inject import add_lora, changes_base
from sdxl_lora.lora.state import adapter_parameters
from sdxl_lora.lora.targets import exactly, layers_with_ranks, target_modules, text_encoder_targets
from sdxl_lora.lora.warm_start import WarmStart, layers_of, load_adapters, lokr_factor, read_warm_start, without_unread
from sdxl_lora.models.base_source import Base, Model
from sdxl_lora.models.loading import DTYPES, ENCODERS, Drawing, Schedule, load_schedulers, load_unet
from sdxl_lora.models.text_encoders import LiveTextEncoder, TextEncoders
from sdxl_lora.performance.compute import checkpoint_blocks, compile_blocks, without_autocast
from sdxl_lora.performance.frozen_layers import use_memory_saving_layers
from sdxl_lora.performance.fused_lora import fuse_lora
from sdxl_lora.performance.quantization import KINDS, has_8_bit_products, quantize_linears
from sdxl_lora.performance.weight_streaming import WeightStream, stream_weights


@dataclass
class LoraModel:
    """The trained model and everything it trains with.

    Attributes:
        unet: without Accelerate's wrapper; frozen where only text encoders train.
        components: the models with adapters, by name.
        wrapped: the modules that the loss calls, prepared by Accelerate: the UNet, and both text encoders as one.
        text: embeddings of prompts, cached or by text encoders that train.
        scheduler: the noise schedule of the objective; sampling_scheduler: that of samples.
        start: the LoRA that the training began from.
        stream: copies the frozen base's weights to the device; None where they stay there.
    """

    unet: nn.Module
    components: dict[str, Model]
    wrapped: list[nn.Module]
    text: TextEmbeddings
    scheduler: Schedule
    sampling_scheduler: Drawing
    start: WarmStart
    stream: WeightStream | None

    def base_at_hand(self) -> AbstractContextManager[None]:
        """Return a context in which the base's weights can be read; a streamed base lacks them otherwise."""
        return nullcontext() if self.stream is None else self.stream.at_home()

    @property
    def num_train_timesteps(self) -> int:
        return self.scheduler.config.num_train_timesteps

    def fingerprint(self) -> dict:
        """Return the facts that a resumed run must find unchanged."""
        return {"init_lora": self.start.sha256}

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of all adapters, by model and name."""
        return {
            f"{name}.{key}": parameter
            for name, model in self.components.items()
            for key, parameter in adapter_parameters(model).items()
        }


def build_model(
    config: TrainConfig, base: Base, text: TextCache, accelerator, info: Callable[[str], None]
) -> LoraModel:
    """Load the UNet, add adapters to the models that train, and prepare them with Accelerate.

    Raises:
        ConfigError: a setting that this base does not support.
    """
    compute = config.compute
    scheduler, sampling_scheduler = load_schedulers(base, config.objective)
    fault_point("loading")
    unet = load_base_unet(compute, base, accelerator.device, info)
    models: dict[str, Model] = {"unet": unet}
    live = None
    if config.adapter.train_text_encoder:  # from here on prompts are read through the current encoders
        assert text.live_parts is not None, "prepare_data leaves encoders that train in memory"
        tokenizers, encoders = text.live_parts
        chunks = config.captions.max_caption_chunks
        live = LiveTextEncoder(tokenizers, TextEncoders(*encoders), text.encoders_key, chunks)
        models |= dict(zip(ENCODERS, encoders, strict=True))
    components = trained_components(models, config.adapter)
    start = warm_start_of(config.adapter, components)
    for note in start.notes:
        info(note)
    add_adapters(components, config, start, info, config.adapter.init_lora_weights, accelerator.device)
    bare = [unet, *([live.encoders] if live else [])]
    for model in bare:  # before weights move to where they cannot be summed
        send_only_what_trains(accelerator, model)
    adapter, stream = config.adapter, None
    for name, model in models.items():
        if name == "unet":
            with_text = adapter.train_text_encoder
            stream = set_computation(model, compute, adapter.has_dropout, info, accelerator.device, with_text)
        elif compute.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
    if is_recorded_by_several(compute, accelerator.num_processes):  # without DDP
        wrapped = [accelerator.prepare_model(model, evaluation_mode=True) for model in bare]
        share_parameters(
            [parameter for model in components.values() for parameter in adapter_parameters(model).values()]
        )
    else:
        wrapped = [prepared(accelerator, model) for model in bare]
    return LoraModel(unet, components, wrapped, live or text, scheduler, sampling_scheduler, start, stream)


def prepared(accelerator, model: nn.Module) -> nn.Module:
    """Return the model as Accelerate wraps it; without DDP, which refuses frozen models, where nothing trains."""
    if any(parameter.requires_grad for parameter in model.parameters()):
        return accelerator.prepare(model)
    return accelerator.prepare_model(model, evaluation_mode=True)


def is_recorded_by_several(compute: ComputeConfig, processes: int) -> bool:
    """Return whether micro-steps are recorded in several processes, which then average gradients without DDP."""
    return compute.cuda_graphs == "on" and processes > 1


def trained_components(models: Mapping[str, Model], adapter: AdapterConfig) -> dict[str, Model]:
    return {name: models[name] for name in trained_names(adapter)}


def trained_names(adapter: AdapterConfig) -> list[str]:
    """Return the names of the models that get adapters."""
    return [*(["unet"] if adapter.train_unet else []), *(ENCODERS if adapter.train_text_encoder else ())]


def warm_start_of(adapter: AdapterConfig, components: Iterable[str]) -> WarmStart:
    """Return the adapters that init_lora has for the models that train; ConfigError where it cannot be used."""
    if adapter.init_lora is None:
        return WarmStart()
    try:
        return read_warm_start(adapter.init_lora, "dora" if adapter.use_dora else adapter.adapter, components)
    except (OSError, ValueError) as error:
        raise ConfigError(f"init_lora: {error}") from error


def add_adapters(
    components: Mapping[str, Model],
    config: TrainConfig,
    start: WarmStart,
    info: Callable[[str], None],
    init: str,
    device: torch.device | None = None,
) -> None:
    """Give each model its adapter.

    Args:
        init: initial weights, see --init_lora_weights.
        device: where the base's weights are decomposed, for an `init` that starts with a part of them.
    Raises:
        ConfigError: targets, ranks or an init_lora that do not fit the models.
    """
    adapter = config.adapter
    for name, model in components.items():
        own, note = without_unread(model, name, start.adapters.get(name, {}))
        if note:
            info(note)
        if changes_base(init):
            model.to(device)  # a GPU decomposes weights a hundred times faster
            if model.dtype != torch.float32:
                rounded = f"{name}: what {init} leaves of the base is rounded to {model.dtype}"
                info(f"{rounded}, which no file records: 0.2 % of its weights; none in float32")
        try:
            add_lora(
                model,
                **(exactly(layers_of(model, name, own)) if own else ranks_and_targets(adapter, name, model)),
                dropout=adapter.lora_dropout,
                seed=config.seed,
                kind=adapter.adapter,
                init=init,
                rank_dropout=adapter.rank_dropout,
                module_dropout=adapter.module_dropout,
                lokr_factor=lokr_factor(own.values()) if own else adapter.lokr_factor or -1,
                use_rslora=adapter.use_rslora,
                use_dora=adapter.use_dora,
            )
            if own:
                load_adapters(model, name, own)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def ranks_and_targets(adapter: AdapterConfig, name: str, model: nn.Module) -> dict:
    """Return `add_lora`'s arguments for the trained modules and their rank and alpha."""
    rank, targets = adapter.rank, adapter.targets
    alpha = adapter.lora_alpha or rank
    if name != "unet":
        targets = text_encoder_targets(model, name, targets)
    elif adapter.block_ranks:
        names, block_ranks = target_modules(model, targets), parse_blocks(adapter.block_ranks, int)
        return exactly(layers_with_ranks(names, rank, alpha, block_ranks, adapter.use_rslora))
    return {"rank": rank, "alpha": alpha, "targets": targets}


def base_dtype(compute: ComputeConfig) -> torch.dtype:
    """Return the frozen UNet's precision; where it is quantized, that of its other layers."""
    return torch.float32 if compute.base_precision == "fp32" else DTYPES[compute.mixed_precision]


def load_base_unet(compute: ComputeConfig, base: Base, device: torch.device, info: Callable[[str], None]) -> nn.Module:
    """Load the frozen UNet in the base's precision; its products stay in that of the computation."""
    # Only from here on: the VAE, gone by now, meets many sizes, and each would be benchmarked.
    torch.backends.cudnn.benchmark = not compute.deterministic
    unet = load_unet(base, base_dtype(compute))
    if compute.base_precision in KINDS:
        in_8_bits = compute.base_products == "8bit" and has_8_bit_products(device, compute.base_precision)
        home = torch.device("cpu") if compute.stream_base else None
        count = quantize_linears(unet, compute.base_precision, device, in_8_bits, home)
        info(f"base in {compute.base_precision}: {count} linear layers are packed{', products too' * in_8_bits}")
        if compute.base_products and not in_8_bits:
            info(
                f"base_products {compute.base_products} is not supported on this device: products are computed as usual"
            )
    return unet


def set_computation(
    unet: nn.Module,
    compute: ComputeConfig,
    has_dropout: bool,
    info: Callable[[str], None],
    device: torch.device,
    trains_text: bool = False,
) -> WeightStream | None:
    """Set the computation of the UNet with its adapter: precision, recomputing, compiling, and place of its weights.

    Args:
        device: where it will compute.
    Returns:
        The stream of its weights, with stream_base.
    """
    compiles = compute.compile == "on"
    use_memory_saving_layers(unet, compiles, trains_text)
    not_fused = fuse_lora(unet, compiles, compute.stream_base, None if compute.stream_base else device)
    if computes_in_half(compute, unet, not_fused):
        without_autocast(unet, DTYPES[compute.mixed_precision])
    try:
        if compute.gradient_checkpointing:
            checkpoint_blocks(unet, compute.gradient_checkpointing_blocks, has_dropout)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    stream = stream_weights(unet, device) if compute.stream_base else None
    if stream is not None:
        info(f"stream_base: the weights of {len(stream.blocks)} blocks stay in RAM, each is loaded when used")
    if compiles:
        compile_blocks(unet, info)
    return stream


def computes_in_half(compute: ComputeConfig, unet: nn.Module, not_fused: dict) -> bool:
    """Return whether the UNet can compute without autocast."""
    return compute.mixed_precision == "bf16" and unet.dtype == torch.bfloat16 and not not_fused
