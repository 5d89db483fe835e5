"""What is asked of a GPU's memory, by devices that are not here."""

import pytest
import torch

from sdxl_lora.performance import device_memory

GIB = 2**30


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
