"""Queries of GPU memory, on simulated devices: each answers only what torch offers for it."""

from functools import partial
from types import SimpleNamespace

import psutil
import pytest
import torch

from sdxl_lora.errors import OutOfMemory
from sdxl_lora.performance import device_memory
from sdxl_lora.performance.device_memory import free_memory, is_out_of_memory, memory_gib, usable_bytes
from sdxl_lora.performance.memory_estimate import CUDA_CONTEXT

GIB = 2**30
OWN = round(CUDA_CONTEXT * GIB)


@pytest.fixture
def counting(monkeypatch):
    """The module of a device whose allocator counts: 8 of 12 GiB free, 2 held, 3 at the most, 10 allowed."""
    asked = []
    module = SimpleNamespace(
        mem_get_info=lambda device: (8 * GIB, 12 * GIB),
        memory_reserved=lambda device: 2 * GIB,
        max_memory_reserved=lambda device: 3 * GIB,
        get_per_process_memory_fraction=lambda index: 0.75,
        empty_cache=lambda: asked.append("empty"),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return asked


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_gpus_that_count_are_asked_alike(counting, kind):
    assert memory_gib(torch.device(kind, 0)) == 3
    assert usable_bytes(torch.device(kind, 0)) == round(0.9 * 9 * GIB) + OWN, "the least of free and allowed"


def test_apples_gpus_share_the_machines_memory(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4 * GIB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    for available, usable in ((6, 10), (20, 12)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda n=available: SimpleNamespace(available=n * GIB))
        assert usable_bytes(torch.device("mps")) == round(0.9 * usable * GIB) + OWN
    assert memory_gib(torch.device("mps")) == 4


def test_without_a_gpu_it_is_this_processs_part_of_the_machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    monkeypatch.setattr(device_memory, "held_bytes", lambda device: GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert usable_bytes(torch.device("cpu")) == 3 * GIB


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_memory_is_given_back_to_whichever_gpu_there_is(monkeypatch, counting, kind):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(kind))
    free_memory()
    assert counting == ["empty"]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    free_memory()
    assert counting == ["empty"]


def test_apples_words_for_no_memory_are_understood_and_a_bug_stays_one():
    advice = partial(device_memory.out_of_memory_advice, torch.device("cpu"), 64, 1, [])
    for error in (torch.OutOfMemoryError("no"), RuntimeError("MPS backend out of memory (MPS allocated: 9 GB ...)")):
        assert is_out_of_memory(error)
        with pytest.raises(OutOfMemory, match="a smaller --resolution"), advice():
            raise error
    with pytest.raises(RuntimeError, match="a bug"), advice():
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("is_windows", "device", "free", "reserved", "is_full"),
    [
        (True, "cuda", 0.1, 10.0, True),
        (True, "cuda", 0.5, 12.5, True),
        (True, "cuda", 2.0, 9.0, False),
        (False, "cuda", 0.1, 10.0, False),
        (True, "cpu", 0.1, 10.0, False),
    ],
)
def test_a_memory_that_spills_is_said_with_the_remedy(monkeypatch, is_windows, device, free, reserved, is_full):
    monkeypatch.setattr(device_memory, "GPU_MEMORY_SPILLS", is_windows)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (round(free * GIB), 12 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: round(reserved * GIB))
    said = device_memory.spill(torch.device(device))
    assert (said is not None) is is_full
    if said:
        assert "of 12.0 GiB" in said and "--memory_budget" in said
