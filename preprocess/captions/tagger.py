"""Tag images with a WD tagger (SmilingWolf's v2 and v3): model.onnx and selected_tags.csv, run by onnxruntime.

onnxruntime is no dependency: users install the build that fits their machine. Runs no code of a repository.
"""

import hashlib
import importlib.util
import os
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess.captions.batch_size import MOST_ON_CPU
from preprocess.captions.tag_list import check_blacklist, read_tag_list, tags_said
from sdxl_lora.config.sections.preprocess import TaggerConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.io.file_system import weights_sha256
from sdxl_lora.io.memo import FileMemo, file_stamp

MODEL, TAGS, WEIGHTS = "model.onnx", "selected_tags.csv", "model.safetensors"
CUDA, DIRECTML, CPU = "CUDAExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider"
WHITE = (255, 255, 255)
INSTALL = (
    "it runs on onnxruntime, which is not installed: pip install onnxruntime-gpu (NVIDIA on Linux and Windows), "
    "onnxruntime-directml (any GPU on Windows) or onnxruntime (no GPU), but only one of them"
)


def is_tagger(model: str) -> bool:
    """Return whether a folder or Hub repository holds a tagger: a tag list or, in a folder, an ONNX model alone."""
    if Path(model).is_dir():
        files = {path.name for path in Path(model).iterdir()}
        return TAGS in files or (MODEL in files and WEIGHTS not in files)
    return _hub_file(model, TAGS) is not None


@cache
def _hub_file(model: str, name: str) -> str | None:
    """Return the path of a file from the Hub; None if the repository lacks it or cannot be reached."""
    from transformers.utils import cached_file

    try:
        return cached_file(
            model,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):  # no such repository: loading it reports that
        return None


def files_of(model: str) -> tuple[Path, Path]:
    """Return the paths of a tagger's ONNX file and tag list.

    Raises:
        ConfigError: one of them is missing.
    """
    found = []
    for name in (TAGS, MODEL):
        path = str(Path(model) / name) if Path(model).is_dir() else _hub_file(model, name)
        if path is None or not Path(path).is_file():
            is_safetensors = name == MODEL and Path(model).is_dir() and (Path(model) / WEIGHTS).is_file()
            why = f" ({WEIGHTS} alone would need timm, which needs torchvision)" if is_safetensors else ""
            why = why if Path(model).is_dir() else ", or the Hub cannot be reached"
            raise ConfigError(
                f"caption_model {model} is a tagger without {name}{why}: give a folder or a repository that holds "
                f"{MODEL} and {TAGS}, such as SmilingWolf/wd-swinv2-tagger-v3"
            )
        found.append(Path(path))
    return found[1], found[0]


def check_tagger(model: str, config: TaggerConfig) -> None:
    """Load the whole tagger and run it on a white image.

    Raises:
        ConfigError: onnxruntime or a file is missing, the files are damaged or do not match, or the blacklist names an
            unknown tag.
    """
    _, tags_path = files_of(model)
    tags = read_tag_list(tags_path)
    check_blacklist(config.tag_blacklist, tags)
    Tagger(model, config)([Image.new("RGB", (8, 8), WHITE)])


def tagger_content(model: str, config: TaggerConfig, hidden: Path) -> str:
    """Return a key of what determines the tags: the tagger's files, wherever they lie, and the settings."""
    onnx, tags = files_of(model)
    memo, digest = FileMemo(hidden / "captioner_files.json"), hashlib.blake2b(digest_size=16)
    others = sorted(path for path in onnx.parent.glob(f"{MODEL}*") if path != onnx)  # weights above 2 GB
    for path in (onnx, *others, tags):
        sha256 = memo.get_or_compute(file_stamp(path), partial(weights_sha256, path))
        digest.update(f"{path.name}\0{sha256}\0".encode())
    memo.save()
    options = (
        f"threshold={config.tag_threshold!r}, character={config.tag_character_threshold!r}, "
        f"blacklist={sorted(config.tag_blacklist)!r}, spaces={config.tag_spaces!r}, "
        f"escape={config.tag_escape_parentheses!r}, ratings={config.tag_ratings!r}"
    )
    return f"{digest.hexdigest()} tags({options})"


@contextmanager
def tagger(model: str, config: TaggerConfig, batch_size: int | None = None) -> Iterator["Tagger"]:
    """Yield a tagger whose session leaves memory when the context ends."""
    tag = Tagger(model, config, batch_size)
    try:
        yield tag
    finally:
        del tag.session


class Tagger:
    """Return as many texts as RGB images, tags between commas; "" where no tag is likely enough.

    Args:
        batch_size: images at once; None for MOST_ON_CPU.
    Raises:
        ConfigError: see check_tagger.
    """

    may_be_empty = True

    def __init__(self, model: str, config: TaggerConfig, batch_size: int | None = None):
        onnx, tags = files_of(model)
        self.model, self.config, self.tags = model, config, read_tag_list(tags)
        self.session = open_session(model, onnx)
        self.input, self.side, fixed = input_of(model, self.session)
        self.batch_size = fixed or batch_size or MOST_ON_CPU
        self.fixed = fixed

    def __call__(self, images: list[Image.Image]) -> list[str]:
        texts: list[str] = []
        step = self.fixed or max(1, len(images))
        for start in range(0, len(images), step):
            batch = np.stack([pixels_of(image, self.side) for image in images[start : start + step]])
            padding = np.zeros((step - len(batch), *batch.shape[1:]), np.float32) if self.fixed else batch[:0]
            rows = self.probabilities(np.concatenate([batch, padding]))[: len(batch)]
            texts += [", ".join(tags_said(row, self.tags, self.config)) for row in rows]
        return texts

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Return one row of tag probabilities for each image.

        Args:
            pixels: (B, side, side, 3) float32, see pixels_of.
        Returns:
            (B, N), in the order of the tag list.
        Raises:
            ConfigError: the output has another shape or is no probability.
        """
        outputs = self.session.run(None, {self.input: pixels})
        wanted = (len(pixels), len(self.tags.names))
        if len(outputs) != 1 or outputs[0].shape != wanted:
            shapes = ", ".join(str(getattr(output, "shape", "none")) for output in outputs)
            raise ConfigError(
                f"caption_model {self.model}: {MODEL} gives {shapes} for {wanted[0]} images, and {TAGS} lists "
                f"{wanted[1]} tags: they do not belong together, download both again"
            )
        rows = outputs[0]
        if not (np.isfinite(rows).all() and (rows >= 0).all() and (rows <= 1).all()):
            raise ConfigError(
                f"caption_model {self.model}: {MODEL} gives numbers from {rows.min():g} to {rows.max():g}, they must "
                "be probabilities from 0 to 1 as from a WD tagger: download it again, or use a WD tagger"
            )
        return rows


def pixels_of(image: Image.Image, side: int) -> np.ndarray:
    """Return an image as WD taggers read it: on a white square, resized; (side, side, 3) float32 BGR, 0 to 255."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), WHITE)
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, np.float32)[:, :, ::-1])


def input_of(model: str, session) -> tuple[str, int, int | None]:
    """Return the name of the input, the side of its square in pixels, and the batch size if that is fixed.

    Raises:
        ConfigError: the input is no batch of images with the channels last.
    """
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    is_square = len(shape) == 4 and isinstance(shape[1], int) and shape[1] == shape[2] and shape[3] == 3
    if not is_square or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise ConfigError(
            f"caption_model {model}: {MODEL} takes {found}, it must take one float input of shape "
            "[images, 448, 448, 3]: use a WD tagger"
        )
    return inputs[0].name, shape[1], shape[0] if isinstance(shape[0], int) else None


def open_session(model: str, onnx: Path):
    """Load the model on the best device that the installed onnxruntime supports.

    Raises:
        ConfigError: onnxruntime is missing, or the file cannot be loaded.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(f"caption_model {model} is a tagger; {INSTALL}")
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if CUDA in there:
        import torch  # noqa: F401  loads the CUDA libraries that onnxruntime needs
    provider = next(provider for provider in (CUDA, DIRECTML, CPU) if provider in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: the console shows the images' progress
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > 1:
        options.intra_op_num_threads = max(1, (os.cpu_count() or 1) // processes)
    if provider == DIRECTML:
        options.enable_mem_pattern = False  # required by DirectML
    device = {"device_id": os.environ.get("LOCAL_RANK", "0")} if provider == CUDA else {}
    providers = [CPU] if provider == CPU else [(provider, device), CPU]
    try:
        session = onnxruntime.InferenceSession(str(onnx), options, providers=providers)
    except Exception as error:  # of many classes, all about the file
        line = textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200)
        raise ConfigError(f"cannot load {MODEL} of caption_model {model} ({line}): download it again") from None
    if provider not in session.get_providers():
        warnings.warn(f"the tagger runs on the CPU: onnxruntime could not start {provider}", stacklevel=2)
    return session
