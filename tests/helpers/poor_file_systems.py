"""File systems without features of others: flush a folder, rename, map."""

import errno
import mmap
import os

import pytest
from safetensors import SafetensorError

from sdxl_lora.cache import records
from sdxl_lora.io import safetensors as safetensors_io
from sdxl_lora.models import base_files


@pytest.fixture
def no_flush_of_folders(monkeypatch, request):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(request.param, os.strerror(request.param))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def no_rename(monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def refuse_to_save(*_):
        raise SafetensorError("Error while serializing: I/O error: Function not implemented (os error 38)")

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(safetensors_io, "save_file", refuse_to_save)


@pytest.fixture(params=[errno.ENODEV])
def no_mapping(monkeypatch, request):
    def refuse(*_, **__):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(mmap, "mmap", refuse)
    for module in (records, base_files):
        monkeypatch.setattr(module, "safe_open", refuse)
    monkeypatch.setattr(safetensors_io, "load_file", refuse)
