"""Files of a Hub repository: which of them hold weights, how large they are, and which are on this disk. No torch."""

import re
import shutil
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import constants, try_to_load_from_cache

from sdxl_lora.errors import ConfigError

STEMS = ("diffusion_pytorch_model", "model")  # of weights, as diffusers and transformers name them
SECONDS = 10  # for the Hub's answer
GB = 1e9  # as download sizes are given
ROOM = 1.02  # of a download: the Hub's client writes a file whole before it has its name


class Download(NamedTuple):
    """A file that is not on this disk, with its size; 0 where the Hub does not say."""

    source: str
    name: str
    bytes: int


def weights_among(names: Collection[str], folder: str, variant: str) -> list[str]:
    """Return the weights of a variant among a repository's file names: one, or its shards; [] where it has none."""
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
    """Sizes in bytes of a repository's files, by name; {} where the Hub cannot be asked. Loading says why it cannot."""
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
    """The weights of a model of transformers that the Hub has and this disk has not."""
    if Path(source).exists():
        return []
    listed = hub_files(source)
    return missing(source, None, weights_among(listed, "", ""), listed)


def described(downloads: Collection[Download]) -> list[str]:
    """Say how much is downloaded, from where and whereto; no line for nothing."""
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
    """Say at once what is about to be downloaded. Raises ConfigError where there is no room for it."""
    check_room(downloads)
    for line in described(downloads):
        print(line, file=sys.stderr, flush=True)


def check_room(downloads: Collection[Download]) -> None:
    """Raises ConfigError where the disk of the Hub's cache has no room for them."""
    needed = ROOM * sum(download.bytes for download in downloads)
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if needed and (free := shutil.disk_usage(folder).free) < needed:
        raise ConfigError(
            f"{size_in_words(needed)} are to be downloaded into {constants.HF_HUB_CACHE}, and its disk has "
            f"{size_in_words(free)} free: make room, or let the environment variable HF_HOME name a folder elsewhere"
        )


def size_in_words(amount: float) -> str:
    return f"{amount / GB:.1f} GB" if amount >= GB / 10 else f"{amount / 1e6:.1f} MB"
