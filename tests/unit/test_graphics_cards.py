"""Cards that are in a machine, and why torch cannot use them."""

import os
from types import SimpleNamespace

import pytest

from sdxl_lora import graphics_cards
from sdxl_lora.graphics_cards import nvidia_cards, why_no_gpu


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine without cards: its folder, whose bin/ is all of PATH, and whose driver/ is the kernel's."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(graphics_cards, "NVIDIA_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(graphics_cards, "AMD_DRIVER", tmp_path / "kfd")
    return tmp_path


def torch_with(cuda=None, hip=None):
    return SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=cuda, hip=hip))


def nvidia_smi(machine, script):
    path = machine / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="the planted command is a shell script")
def test_a_card_is_seen_by_nvidia_smi(machine):
    nvidia_smi(machine, "echo 'NVIDIA GeForce RTX 3060, 581.15'; echo 'Tesla T4, 581.15'")
    assert nvidia_cards() == [("NVIDIA GeForce RTX 3060", "581.15"), ("Tesla T4", "581.15")]
    what, remedy = why_no_gpu(torch_with())
    assert what == "an NVIDIA card is here (NVIDIA GeForce RTX 3060), but torch 2.13.0 has no CUDA"
    assert "pip uninstall torch" in remedy
    assert "cannot use it" in why_no_gpu(torch_with(cuda="13.0"))[0]
    nvidia_smi(machine, "echo 'Tesla T4, 550.90'")
    what, remedy = why_no_gpu(torch_with(cuda="13.0"))
    assert "driver 550.90 is too old for CUDA 13.0" in what and "580 or newer" in remedy
    assert "too old" not in why_no_gpu(torch_with(cuda="12.8"))[0]


@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'", None])
def test_a_card_is_seen_by_the_kernel_where_nvidia_smi_fails(machine, script):
    if script:
        nvidia_smi(machine, script)
    assert nvidia_cards() == [] and why_no_gpu(torch_with())[0] == "torch sees no GPU"
    (machine / "driver" / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (machine / "driver" / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t Tesla T4\nIRQ: 1\n")
    assert nvidia_cards() == [("Tesla T4", "")]
    (machine / "driver" / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun\n")
    assert nvidia_cards() == [("Tesla T4", "535.183.01")]


def test_a_card_of_amd_is_seen(machine):
    (machine / "kfd").touch()
    assert "no ROCm" in why_no_gpu(torch_with(cuda="13.0"))[0]
    assert why_no_gpu(torch_with(hip="7.0"))[0] == "torch sees no GPU"
