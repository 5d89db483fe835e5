"""Cache records: one checksummed safetensors file each, complete or absent; and their division among processes."""

import json
import mmap
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from sdxl_lora.data.image_dataset import content_key
from sdxl_lora.errors import DataError
from sdxl_lora.io.file_system import cannot_map, say_once
from sdxl_lora.io.safetensors import save_tensors


@dataclass(frozen=True)
class Workers:
    """This process among those that fill the cache together.

    should_stop: checked before each encoding of one or several records; once true, filling ends and the caches stay
        incomplete.
    """

    rank: int = 0
    world_size: int = 1
    should_stop: Callable[[], object] = lambda: False

    def share(self, items: list) -> list:
        return items[self.rank :: self.world_size]


def workers_of(part: str | None, rank: int, world_size: int, should_stop: Callable[[], object]) -> Workers:
    """Return this process's place within one job, or within part "i/n" of n jobs with as many processes each."""
    number, jobs = map(int, (part or "1/1").split("/"))
    return Workers((number - 1) * world_size + rank, jobs * world_size, should_stop)


def record_path(folder: Path, *facts) -> Path:
    """Return the record's file, in one of 256 subfolders so that none grows too large to list."""
    key = content_key(b"", *facts)
    return folder / key[:2] / f"{key}.safetensors"


def write_record(path: Path, record: dict[str, torch.Tensor]) -> None:
    """Write a record with a checksum, whole or not at all: save_tensors writes under a temporary name and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {name: tensor.contiguous() for name, tensor in record.items()}
    checksum = zlib.crc32(data_of(save(record)))
    try:
        save_tensors(record, path, {"crc32": f"{checksum:08x}"})
    except SafetensorError as error:
        vars(error)["filename"] = str(path)  # errors of a full disk name no file
        raise


def data_of(file: bytes | mmap.mmap) -> memoryview:
    """Return the data behind a safetensors file's header."""
    return memoryview(file)[8 + int.from_bytes(file[:8], "little") :]


def is_whole(path: Path) -> bool:
    """Return whether a record exists in full length, by its header alone."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            data_begin = file.tell()
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == data_begin + max(ends)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError):
        return False


def read_record(path: Path) -> dict[str, torch.Tensor]:
    """Read a record memory-mapped and verify its checksum.

    Raises:
        DataError: the record is missing or damaged.
    """
    try:
        try:
            return mapped_record(path)
        except (OSError, SafetensorError) as error:
            if not path.is_file() or not cannot_map(error):
                raise
            say_once(path.parent, "cannot map files into memory", "they are read instead", error)
            return read_whole_record(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(
            f"{path} is a damaged cache record ({error}): delete it and run the same command again"
        ) from None


def mapped_record(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file, open(path, "rb") as raw:
        with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            compare_checksum(file.metadata(), mapped)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict


def read_whole_record(path: Path) -> dict[str, torch.Tensor]:
    data = path.read_bytes()
    header = json.loads(data[8 : len(data) - len(data_of(data))])
    compare_checksum(header.get("__metadata__"), data)
    return load(data)


def compare_checksum(metadata: dict[str, str] | None, file: bytes | mmap.mmap) -> None:
    """Raise SafetensorError if a record's bytes have changed since it was written."""
    checksum = (metadata or {}).get("crc32")
    if checksum is not None and zlib.crc32(data_of(file)) != int(checksum, 16):
        raise SafetensorError("its checksum does not match")
