"""Weights of a base model on disk by canonical module name, read one at a time.

Reads a diffusers folder, or one .safetensors in the original (Stability, CivitAI) layout. Builds no model and knows no
LoRA.
"""

import re
from pathlib import Path

from torch import Tensor

from sdxl_lora.io.file_system import weights_sha256
from sdxl_lora.io.safetensors import TensorFile
from sdxl_lora.lora.formats.keys import COMPONENTS, canonical
from sdxl_lora.lora.formats.reader import Key
from sdxl_lora.models.base_files import scale_of, scaled
from sdxl_lora.models.original_names import OPEN_CLIP_LAYER, PREFIXES

PART_OF_PREFIX = {prefix: part for part in COMPONENTS for prefix in PREFIXES[part]}  # in a single file
FROM_OPEN_CLIP = {theirs: ours for ours, theirs in OPEN_CLIP_LAYER.items()}
# (module, its number and the number of modules that share the tensor's rows)
Part = tuple[Key, int, int]


class BaseWeights:
    """An open base model.

    files: {path: TensorFile}; parts: {(path, tensor): modules whose weights it holds, in order of its rows}.

    Raises:
        ValueError: neither a diffusers folder of SDXL nor a single file in the original layout.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.is_folder = self.path.is_dir()
        self.files: dict[Path, TensorFile] = {}
        self.parts: dict[tuple[Path, str], list[Part]] = {}
        if not self.path.exists():
            raise ValueError(f"{path} is not there: give a diffusers folder or a single .safetensors.")
        if self.is_folder:
            for component in COMPONENTS:
                for file in component_files(self.path / component):
                    self._open(file, component)
        else:
            self._open(self.path, None)
        self.places = {part[0]: (*place, *part[1:]) for place, parts in self.parts.items() for part in parts}
        if not any(component == "unet" for component, _ in self.places):
            self.close()
            raise ValueError(
                f"{path} is not an SDXL base model: give a diffusers folder, or a single .safetensors with "
                "model.diffusion_model. and conditioner.embedders. in its names."
            )

    def _open(self, path: Path, component: str | None) -> None:
        self.files[path] = TensorFile(path)
        for name in self.files[path].shapes:
            if parts := modules_of_tensor(component, name):
                self.parts[path, name] = parts

    def weight(self, key: Key) -> Tensor:
        """Return the weight of one module in the file's dtype, or in float32 for scaled fp8.

        Raises:
            ValueError: the base has no such module.
        """
        if key not in self.places:
            raise ValueError(f"{self.path} has no {key[0]} module {key[1]}: the LoRA is for another base.")
        path, name, i, count = self.places[key]
        file = self.files[path]
        scale = scale_of(name, file.shapes)
        weight = file.read(name) if scale is None else scaled(file.read(name), file.read(scale))
        return weight.chunk(count)[i]

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def __enter__(self) -> "BaseWeights":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def component_files(folder: Path) -> list[Path]:
    """Return the .safetensors of one part of a diffusers folder: one file, its shards, or else an fp16 variant.

    Raises:
        ValueError: there are none.
    """
    whole = [folder / name for name in ("diffusion_pytorch_model.safetensors", "model.safetensors")]
    for found in (
        [path for path in whole if path.is_file()],
        sorted(path for path in folder.glob("*-of-*.safetensors") if ".fp16-" not in path.name),
        sorted(folder.glob("*.fp16.safetensors")) or sorted(folder.glob("*.fp16-*-of-*.safetensors")),
    ):
        if found:
            return found
    raise ValueError(f"{folder} holds no .safetensors weights; pickles (.bin) are not read.")


def base_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a single file, or of a diffusers folder's UNet weights (shards concatenated).

    A file in the Hub's cache is named by its hash already, which saves reading gigabytes. "" if the path is not local.
    """
    path = Path(path)
    if not path.exists():
        return ""
    files = component_files(path / "unet") if path.is_dir() else [path]
    return weights_sha256(*files)


def modules_of_tensor(component: str | None, name: str) -> list[Part]:
    """Return the modules whose weights a tensor holds: one, none, or three for OpenCLIP's joined q, k, v.

    Args:
        component: the part of a diffusers folder, or None in a single file, whose names tell it.
    """
    if component is None:
        prefix = next((prefix for prefix in PART_OF_PREFIX if name.startswith(prefix)), None)
        if prefix is None:
            return []
        component, name = PART_OF_PREFIX[prefix], name.removeprefix(prefix)
    if found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)(?:\.|_)weight", name):
        layer = f"text_model.encoder.layers.{found[1]}"
        if found[2] == "attn.in_proj":
            return [((component, f"{layer}.self_attn.{part}_proj"), i, 3) for i, part in enumerate("qkv")]
        name = f"{layer}.{FROM_OPEN_CLIP.get(found[2], found[2])}.weight"
    if not name.endswith(".weight"):
        return []
    try:
        return [((component, canonical(component, name.removesuffix(".weight"))), 0, 1)]
    except ValueError:
        return []  # a norm or embedding, which no LoRA changes
