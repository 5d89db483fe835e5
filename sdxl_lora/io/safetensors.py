"""Read and write .safetensors one tensor at a time, so that memory holds one tensor, not a whole file.

The `safetensors` package maps or holds whole files; rewriting a 7 GB base must not cost twice that.
Format: 8 bytes header length, JSON header {name: {dtype, shape, data_offsets}}, then the data without gaps
(https://github.com/huggingface/safetensors#format).
"""

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from sdxl_lora.errors import DiskError
from sdxl_lora.io.file_system import CANNOT_RENAME, cannot_map, flush_to_disk, remedy_for, replace, say_once

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip, and plain pickles


class TensorFile:
    """An open .safetensors file with `shapes`, `dtypes`, `metadata`, and `read(name)` for one tensor.

    Raises:
        ValueError: the file is not a .safetensors file or is truncated; the message says what it looks like instead.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(
                f"{path} is {'a folder' if self.path.is_dir() else 'not there'}: give a .safetensors file."
            )
        self.file = self.path.open("rb")
        try:
            header = self._header()
        except ValueError:
            self.close()
            raise
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.dtypes = {name: DTYPES[entry["dtype"]] for name, entry in header.items()}
        self.offsets = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}

    def _header(self) -> dict:
        size = self.path.stat().st_size
        start = self.file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        if length > min(MAX_HEADER_BYTES, max(size - 8, 0)):
            if start.startswith(PICKLED):  # only now: a valid header of 640 bytes begins like a pickle
                raise ValueError(
                    f"{self.path} is a pickle (.ckpt, .pt, .bin), which can run code: convert it elsewhere first."
                )
            raise ValueError(f"{self.path} is not a .safetensors file ({size} bytes), or it was cut short.")
        try:
            header = json.loads(self.file.read(length))
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            if not all(isinstance(value, str) for value in (header.get("__metadata__") or {}).values()):
                raise TypeError("metadata")
            unknown = {entry["dtype"] for entry in entries} - set(DTYPES)
            ends = [end for _, end in map(_checked_span, entries)] if not unknown else []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{self.path} is not a .safetensors file: its header is not valid.") from None
        if unknown:
            raise ValueError(
                f"{self.path} holds tensors of type {', '.join(sorted(map(str, unknown)))}, which are not supported."
            )
        self.data_start = 8 + length
        if size != self.data_start + max(ends, default=0):
            raise ValueError(
                f"{self.path} has {size} bytes, its header says {self.data_start + max(ends, default=0)}: "
                "it was cut short or damaged; copy or download it again."
            )
        return header

    def read(self, name: str) -> Tensor:
        begin, end = self.offsets[name]
        if begin == end:
            return torch.empty(self.shapes[name], dtype=self.dtypes[name])
        buffer = bytearray(end - begin)
        self.file.seek(self.data_start + begin)
        self.file.readinto(buffer)
        return torch.frombuffer(buffer, dtype=self.dtypes[name]).reshape(self.shapes[name])

    def close(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _checked_span(entry: dict) -> tuple[int, int]:
    """Return (begin, end) of a tensor's bytes; raise ValueError if the span does not match its shape."""
    begin, end = entry["data_offsets"]
    if begin < 0 or end - begin != torch.Size(entry["shape"]).numel() * DTYPES[entry["dtype"]].itemsize:
        raise ValueError(entry)
    return begin, end


def data_sha256(layout: dict[str, tuple[torch.dtype, tuple]], tensor_of: Callable[[str], Tensor]) -> str:
    """Return the SHA-256 of the data that `write_tensors` will put after the header (kohya's `sshs_model_hash`)."""
    digest = hashlib.sha256()
    for name in _order(layout):
        digest.update(_bytes(tensor_of(name)))
    return digest.hexdigest()


def write_tensors(
    path: Path,
    layout: dict[str, tuple[torch.dtype, tuple]],
    tensor_of: Callable[[str], Tensor],
    metadata: dict[str, str],
    verify: Callable[[Path], None] = lambda written: None,
) -> None:
    """Write `path` whole or not at all: temporary name, fsync, `verify(temporary path)`, then rename.

    Args:
        layout: (dtype, shape) of every tensor; `tensor_of` is called for them one by one.
        verify: raises to have the file removed instead of renamed.
    Raises:
        DiskError: the disk is full or not writable; a former file at `path` is untouched.
    """
    header: dict[str, dict] = {"__metadata__": metadata}
    offset = 0
    for name in _order(layout):
        dtype, shape = layout[name]
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in _order(layout):
                tensor = tensor_of(name)
                assert (tensor.dtype, tuple(tensor.shape)) == (layout[name][0], tuple(layout[name][1])), name
                file.write(_bytes(tensor))
        flush_to_disk(temporary)
        verify(temporary)
        replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, DiskError):
            raise DiskError(_disk_trouble(path, len(text) + 8 + offset, error)) from error
        raise
    flush_to_disk(path.parent)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Save like safetensors' save_file, but write directly if the file system cannot rename its temporary file."""
    try:
        save_file(tensors, path, metadata)
    except (OSError, SafetensorError) as error:
        if not any(f"os error {number})" in str(error) for number in CANNOT_RENAME):
            raise
        path.write_bytes(save(tensors, metadata))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load like safetensors' load_file, but read the file if it cannot be mapped into memory."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        if not cannot_map(error):
            raise
        say_once(path.parent, "cannot map files into memory", "they are read instead", error)
        return load(path.read_bytes())


def _disk_trouble(path: Path, size: int, error: OSError) -> str:
    why = f"cannot write {path}: {error.strerror or error}; it needs {size} bytes"
    with contextlib.suppress(OSError):
        why += f", {shutil.disk_usage(path.parent).free} are free"
    return f"{why}. {remedy_for(error)} and start again."


def _order(layout: dict[str, tuple[torch.dtype, tuple]]) -> list[str]:
    return sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))  # wide types first, so all stay aligned


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
