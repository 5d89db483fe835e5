"""Locations of a base's parts, in a folder, on the Hub or in one file, and the models built from its configs.

Reads configs, not weights. Accepts only safetensors: a pickle can run code.
"""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.initialization import no_init_weights

from sdxl_lora.errors import ConfigError
from sdxl_lora.io.hub_files import STEMS

SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
MODELS = {
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "vae": AutoencoderKL,
}
Model: TypeAlias = UNet2DConditionModel | CLIPTextModel | CLIPTextModelWithProjection | AutoencoderKL


@dataclass(frozen=True)
class Base:
    """Locations of a base model's parts.

    path: diffusers folder, Hub id, or one .safetensors file.
    vae_path: another VAE: a folder, a Hub id, or one .safetensors file.
    config_path: for one file, the diffusers folder or Hub id with its configs and tokenizers.
    """

    path: str
    vae_path: str | None = None
    config_path: str | None = None
    revision: str | None = None
    variant: str | None = None

    @property
    def is_file(self) -> bool:
        return Path(self.path).is_file()

    @property
    def has_vae_file(self) -> bool:
        return self.vae_path is not None and Path(self.vae_path).is_file()

    @property
    def configs(self) -> str:
        """Folder or Hub id with the configs and tokenizers."""
        return (self.config_path or SDXL_BASE) if self.is_file else self.path

    def variants(self, part: str) -> tuple[str, ...]:
        """Return the weight variants to look for in a part, in order; "" is full precision.

        A separate VAE need not come in the base's variant.
        """
        if self.variant is None:
            return ("", "fp16")
        return (self.variant, "", "fp16") if part == "vae" and self.vae_path is not None else (self.variant,)

    def hub_arguments(self, subfolder: str) -> dict:
        return {"subfolder": subfolder, "revision": None if self.is_file else self.revision}


def source_of(base: Base, part: str) -> tuple[str, str]:
    """Return (folder, Hub id or file; subfolder) of a part's weights, and of a separate VAE's config."""
    if part == "vae" and base.vae_path is not None:
        return base.vae_path, "vae" if (Path(base.vae_path) / "vae").is_dir() else ""
    return base.path, "" if base.is_file else part


def part_files(base: Base, part: str) -> list[Path]:
    """Return the files on this disk with a part's weights and config; [] if they are unknown without a connection."""
    source, subfolder = source_of(base, part)
    if Path(source).is_file():
        config = Path(base.configs) / part / "config.json"
        return [Path(source), *([config] if config.is_file() else [])]
    try:
        is_folder = Path(source).is_dir()
        folder = Path(source if is_folder else snapshot_download(source, revision=base.revision, local_files_only=True))
    except (OSError, ValueError):
        return []
    used = {path.name for path in weight_files(base, part, download=False)}
    return sorted(path for path in (folder / subfolder).glob("*") if path.suffix == ".json" or path.name in used)


def weight_files(base: Base, part: str, download: bool = True) -> list[Path]:
    """Return the .safetensors of a part: one file, or its shards.

    Args:
        download: False for files on this disk only; [] if they are incomplete.
    Raises:
        ConfigError: there are none, or none of the variant.
    """
    source, subfolder = source_of(base, part)
    if Path(source).is_file():
        return [Path(source)]
    variants = base.variants(part)
    if Path(source).is_dir():
        folder = Path(source) / subfolder
        place, found = str(folder), next(filter(None, (local_weights(folder, variant) for variant in variants)), [])
    else:
        revision = base.revision if source == base.path else None
        found = next(
            filter(None, (hub_weights(source, subfolder, variant, revision, download) for variant in variants)), []
        )
        place = "/".join(filter(None, (source, subfolder)))
    if not found and download:
        raise ConfigError(
            f"{place} holds no .safetensors weights{f' of variant {base.variant}' if base.variant else ''}; pickles "
            "(.bin) can run code and are not loaded"
        )
    return found


def local_weights(folder: Path, variant: str) -> list[Path]:
    dot = f".{variant}" if variant else ""
    for stem in STEMS:
        if (whole := folder / f"{stem}{dot}.safetensors").is_file():
            return [whole]
        if (index := folder / f"{stem}.safetensors.index{dot}.json").is_file():
            return [folder / name for name in shards_of(index)]
    shard = re.compile(rf"\w+{re.escape(dot)}-\d+-of-\d+\.safetensors|\w+-\d+-of-\d+{re.escape(dot)}\.safetensors")
    return sorted(path for path in folder.glob("*-of-*.safetensors") if shard.fullmatch(path.name))


def shards_of(index: Path) -> list[str]:
    """Return the shards listed in an index; raise ConfigError if it is damaged."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{index} is not an index of .safetensors files ({error}): copy or download it again"
        ) from None


def variants_in(base: Base, part: str) -> list[str]:
    """Return the variants of a part's weights in a folder, such as fp16; [] if the source is no folder."""
    source, subfolder = source_of(base, part)
    names = (path.name for path in (Path(source) / subfolder).glob("*.safetensors"))
    found = (
        re.fullmatch(r"(?:diffusion_pytorch_model|model)\.(\w+)(?:-\d+-of-\d+)?\.safetensors", name) for name in names
    )
    return sorted({match[1] for match in found if match})


def hub_weights(source: str, subfolder: str, variant: str, revision: str | None, download: bool) -> list[Path]:
    """Return a Hub id's weights, cached or downloaded; [] if it has none of that variant."""
    dot = f".{variant}" if variant else ""

    def get(name: str) -> Path:
        path = hf_hub_download(
            source, name, subfolder=subfolder or None, revision=revision, local_files_only=not download
        )
        return Path(path)

    for stem in STEMS:
        with contextlib.suppress(EntryNotFoundError):  # also raised for files that are not in the cache
            return [get(f"{stem}{dot}.safetensors")]
        with contextlib.suppress(EntryNotFoundError):
            return [get(name) for name in shards_of(get(f"{stem}.safetensors.index{dot}.json"))]
    return []


def empty_model(base: Base, part: str) -> Model:
    """Build a part from its config on the meta device: names and shapes, no memory."""
    without_values = (init_empty_weights(include_buffers=False), no_init_weights())
    with config_errors(base, f"the config of {part}"), without_values[0], without_values[1]:
        model, arguments = MODELS[part], base.hub_arguments(part)
        if part.startswith("text"):
            return model(model.config_class.from_pretrained(base.configs, **arguments))
        source = base.configs
        if part == "vae" and base.vae_path is not None and not base.has_vae_file:
            source, subfolder = source_of(base, "vae")
            arguments = {"subfolder": subfolder}
        config = model.load_config(source, **{name: value for name, value in arguments.items() if value})
        if (found := config.get("_class_name", model.__name__)) != model.__name__:
            raise ConfigError(f"{source} has {found} for its {part}, it must be {model.__name__}")
        return model.from_config(config)


def has_configs_here(base: Base) -> bool:
    """Return whether all configs of a base are on this disk, in folders or in the Hub's cache."""
    vae_is_apart = base.vae_path is not None and not base.has_vae_file
    parts = [part for part in MODELS if not (part == "vae" and vae_is_apart)]
    names = ["model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts)]
    revision = base.hub_arguments("")["revision"]
    wanted = [(base.configs, name, revision) for name in names]
    if vae_is_apart:
        wanted.append((str(base.vae_path), "config.json", None))
    try:
        return all(
            Path(source).is_dir() or isinstance(try_to_load_from_cache(source, name, revision=revision), str)
            for source, name, revision in wanted
        )
    except HFValidationError:  # neither a folder nor a Hub id
        return False


def models_without_weights(base: Base) -> dict[str, Model]:
    """Build all four models from their configs on the meta device: names and shapes, no memory."""
    return {part: empty_model(base, part).to("meta") for part in MODELS}


@contextlib.contextmanager
def config_errors(base: Base, part: str):
    try:
        yield
    except ConfigError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        why = str(error)
        if is_out_of_reach(error):
            offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
            why = f"it is missing from this disk, or incomplete, and the Hub cannot be reached{offline}"
        said = f"cannot load {part} of {base.path}: {why}"
        if Path(base.configs).is_dir():
            said = " ".join(said.split())
        else:
            said += (
                "\nWithout a connection, give local paths: --pretrained_model_name_or_path, and for a single "
                ".safetensors file also --pretrained_config_name_or_path."
            )
        raise ConfigError(said) from error


def is_out_of_reach(error: BaseException | None) -> bool:
    """Return whether an error was caused by a file on an unreachable Hub, which libraries report as other errors."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False
