"""Tensors in a base's .safetensors files: headers at once, each tensor on demand, scaled fp8 multiplied by its scale.

Knows names and files; builds no model.
"""

import contextlib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sdxl_lora.errors import ConfigError
from sdxl_lora.io.file_system import say_once
from sdxl_lora.io.safetensors import DTYPE_NAMES, TensorFile
from sdxl_lora.models.original_names import PREFIXES, places

SCALES = ("scale_weight", "weight_scale")  # ComfyUI's names of 2024 and 2025, beside a layer's `weight`
HARMLESS = re.compile(
    r"model_ema\..*|(.*\.)?(position_ids|logit_scale|attn_mask|scaled_fp8|scale_input|input_scale|comfy_quant)"
    r"|conditioner\.embedders\.0\.transformer\.text_projection\.weight"
    r"|v_pred|ztsnr|edm_\w+(\..*)?|denoiser\..*|(first_stage_model\.|vae\.)?(loss|discriminator|model_ema)\..*"
    r"|betas|(sqrt_|log_|posterior_|alphas_|lvlb_)\w+|logvar|global_step|epoch|iteration"
)  # tensors that our models lack: averages, counters, schedules, training losses, marks


class Tensors:
    """The tensors of one part or of a whole base, by name.

    Raises:
        ConfigError: a file is not a .safetensors file, a pickle, or truncated.
    """

    def __init__(self, paths: Iterable[Path]):
        self.paths = list(paths)
        self.files: dict[str, TensorFile] = {}
        self.mapped: dict[Path, safe_open | None] = {}  # None if the file system cannot map it
        self.metadata: dict[str, str] = {}
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            for path in self.paths:
                try:
                    file = opened.enter_context(TensorFile(path))
                except (ValueError, OSError) as error:
                    raise ConfigError(f"{path} is not a readable .safetensors file: {error}") from None
                self.files |= dict.fromkeys(file.shapes, file)
                self.metadata |= file.metadata
            self._open = opened.pop_all()

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self):
        return iter(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self.files[name].dtypes[name]

    def scale_of(self, name: str) -> str | None:
        """Return the name of a packed weight's scale; None if it has none."""
        return scale_of(name, self.files)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor in the file's dtype, or in float32 if it has a scale."""
        scale = self.scale_of(name)
        return self._raw(name) if scale is None else scaled(self._raw(name), self._raw(scale))

    def _raw(self, name: str) -> torch.Tensor:
        """Return a tensor mapped into memory or, if the file system cannot map it, read."""
        file = self.files[name]
        if file.path not in self.mapped:
            try:
                self.mapped[file.path] = self._open.enter_context(safe_open(file.path, framework="pt"))
            except (OSError, SafetensorError) as error:
                self.mapped[file.path] = None
                say_once(file.path.parent, "cannot map files into memory", "they are read instead", error)
        mapped = self.mapped[file.path]
        return file.read(name) if mapped is None else mapped.get_tensor(name)

    def close(self) -> None:
        self.mapped.clear()
        self._open.close()

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def scale_of(name: str, names: Container[str]) -> str | None:
    """Return the name of a packed weight's scale; None if it has none."""
    layer, _, kind = name.rpartition(".")
    found = (f"{layer}.{scale}" for scale in SCALES) if kind == "weight" else ()
    return next((scale for scale in found if scale in names), None)


def scaled(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return a packed weight in float32, with one scale or one per row."""
    factor = scale.float()
    if factor.numel() > 1:
        factor = factor.reshape(-1, *[1] * (tensor.dim() - 1))
    return tensor.float() * factor


@dataclass
class Fit:
    """A part's tensors in the files: `found` by the part's own names.

    missing: names that are absent. misshapen: tensors of another shape. packed: integers without a scale.
    """

    prefix: str
    found: dict = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def fit(part: str, shapes: Mapping[str, tuple[int, ...]], tensors: Tensors, levels: int = 0) -> Fit:
    """Match a model's tensors to the files, using headers only.

    Args:
        shapes: shapes in the model's state_dict.
        levels: see `original_names.places`.
    """
    result = Fit(prefix_of(part, tensors))
    for name, shape in shapes.items():
        candidates = places(part, name, levels)
        place = next((place for place in candidates if result.prefix + place.name in tensors), None)
        if place is None:
            result.missing.append(result.prefix + (candidates[-1].name if result.prefix else name))
            continue
        stored = result.prefix + place.name
        result.used.add(stored)
        if scale := tensors.scale_of(stored):
            result.used.add(scale)
        elif not tensors.dtype(stored).is_floating_point:
            result.packed.append(stored)
        theirs = tensors.shape(stored)
        if place.is_transposed:
            theirs = theirs[::-1]
        if place.count > 1:
            theirs = (theirs[0] // place.count, *theirs[1:])
        if not same_but_for_ones(theirs, shape):
            result.misshapen.append(f"{stored} is {list(theirs)}, it must be {list(shape)}")
        result.found[name] = place
    return result


def same_but_for_ones(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Return whether two shapes are equal, or are those of a linear layer and its equivalent 1x1 convolution."""
    return theirs == tuple(ours) or (
        {len(theirs), len(ours)} == {2, 4} and list(theirs[2:] or ours[2:]) == [1, 1] and theirs[:2] == ours[:2]
    )


def prefix_of(part: str, tensors: Iterable[str]) -> str:
    """Return the prefix of a part's names; "" in files of the part alone."""
    names = list(tensors)
    return next((prefix for prefix in PREFIXES[part] if any(name.startswith(prefix) for name in names)), "")


def read_into(model: torch.nn.Module, found: Fit, tensors: Tensors, dtype: torch.dtype) -> None:
    """Fill a model, whose parameters are on the meta device, with the tensors that `fit` found, one at a time.

    Raises:
        ConfigError: a weight holds NaN or infinity.
    """
    state = {}
    for name, parameter in model.state_dict().items():
        place = found.found[name]
        tensor = tensors.read(found.prefix + place.name)
        if place.is_transposed:
            tensor = tensor.T
        if place.count > 1:
            tensor = tensor.chunk(place.count)[place.number]
        state[name] = tensor.reshape(parameter.shape).to(dtype).contiguous()
        if not state[name].sum(dtype=torch.float32).isfinite():
            path, stored = tensors.files[found.prefix + place.name].path, found.prefix + place.name
            raise ConfigError(
                f"{path} has NaN or infinity in {stored}, read as {DTYPE_NAMES[dtype]}: copy or download it again, or "
                "give another"
            )
    model.load_state_dict(state, assign=True)


def unknown_names(unused: Iterable[str]) -> list[str]:
    """Return the unused names without a known, harmless meaning."""
    return [name for name in unused if not HARMLESS.fullmatch(name)]


def shown(names: list[str], count: int = 3) -> str:
    """Return some names and the number of others, for a sentence."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
