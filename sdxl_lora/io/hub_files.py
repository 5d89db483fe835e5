"""Files of a Hub repository: weights among them, sizes, and presence on this disk. Imports no torch."""

import re
import shutil
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import constants, try_to_load_from_cache

from sdxl_lora.errors import ConfigError

STEMS = ("diffusion_pytorch_model", "model")  # names of weights in diffusers and transformers
SECONDS = 10  # timeout for the Hub's answer
GB = 1e9  # unit of download sizes
ROOM = 1.02  # times a download's size: the Hub's client writes a file whole before it renames it


class Download(NamedTuple):
    """A file missing on this disk, with its size; 0 if the Hub does not say."""

    source: str
    name: str
    bytes: int


def weights_among(names: Collection[str], folder: str, variant: str) -> list[str]:
    """Return a variant's weights among a repository's file names: one file, its shards, or []."""
    start, dot = f"{folder}/" if folder else "", f".{variant}" if variant else ""
    for stem in STEMS:
        if (whole := f"{start}{stem}{dot}.safetensors") in names:
            return [whole]
        number, name = r"-\d+-of-\d+", re.escape(f"{start}{stem}")
        shard = re.compile(rf"{name}({re.escape(dot)}{number}|{number}{re.escape(dot)})\.safetensors")
        if shards := sorted(name for name in names if shard.fullmatch(name)):
            return shards
    return []


def hub_files(source: str, revision: str | None = None) -> dict[str, int]:
    """Return sizes in bytes of a repository's files by name; {} if the Hub cannot be asked. Loading reports why."""
    if constants.HF_HUB_OFFLINE:
        return {}
    try:
        about = huggingface_hub.HfApi().model_info(source, revision=revision, timeout=SECONDS, files_metadata=True)
    except Exception:  # requests, httpx and hub errors of many classes
        return {}
    return {file.rfilename: file.size or 0 for file in about.siblings or []}


def is_cached(source: str, revision: str | None, name: str) -> bool:
    return isinstance(try_to_load_from_cache(source, name, revision=revision), str)


def missing(source: str, revision: str | None, names: Iterable[str], sizes: dict[str, int]) -> list[Download]:
    return [Download(source, name, sizes[name]) for name in names if not is_cached(source, revision, name)]


def downloads_of_model(source: str) -> list[Download]:
    """Return the weights of a transformers model that are on the Hub but not on this disk."""
    if Path(source).exists():
        return []
    listed = hub_files(source)
    return missing(source, None, weights_among(listed, "", ""), listed)


def described(downloads: Collection[Download]) -> list[str]:
    """Return lines that say how much is downloaded from each source and into which folder."""
    lines = []
    for source in dict.fromkeys(download.source for download in downloads):
        of_source = [download for download in downloads if download.source == source]
        total = sum(download.bytes for download in of_source)
        largest = max(of_source, key=lambda download: download.bytes)
        lines.append(
            f"downloads {size_in_words(total)} of {source} ({len(of_source)} files, the largest {largest.name}) "
            f"into {constants.HF_HUB_CACHE}"
        )
    return lines


def announce(downloads: Collection[Download]) -> None:
    """Print the coming downloads; raise ConfigError if the disk has no room for them."""
    check_room(downloads)
    for line in described(downloads):
        print(line, file=sys.stderr, flush=True)


def check_room(downloads: Collection[Download]) -> None:
    """Raise ConfigError if the disk of the Hub's cache has no room for the downloads."""
    needed = ROOM * sum(download.bytes for download in downloads)
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if needed and (free := shutil.disk_usage(folder).free) < needed:
        raise ConfigError(
            f"{size_in_words(needed)} must be downloaded into {constants.HF_HUB_CACHE}, but its disk has "
            f"{size_in_words(free)} free: make room, or set the environment variable HF_HOME to a folder elsewhere"
        )


def size_in_words(amount: float) -> str:
    return f"{amount / GB:.1f} GB" if amount >= GB / 10 else f"{amount / 1e6:.1f} MB"
