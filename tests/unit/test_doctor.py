"""The doctor finds what would keep a machine from training, and says what to do."""

import json
import os
import shutil
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes import cextension

from sdxl_lora import graphics_cards, packages
from sdxl_lora.doctor import __main__ as doctor
from sdxl_lora.doctor.short import in_short
from tests.helpers.planted import plant_package

GIB = 2**30
VARIABLES = ("ACCELERATE_USE_CPU", "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine that is fit: an RTX 4090 that torch can use, all packages, folders of its own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(graphics_cards, "NVIDIA_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(graphics_cards, "AMD_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (23 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "compute_90"])
    card(monkeypatch, "NVIDIA GeForce RTX 4090", 8, 9)
    room(monkeypatch, 500)
    return tmp_path


def card(monkeypatch, name, major, minor):
    facts = SimpleNamespace(name=name, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))


def room(monkeypatch, gigabytes):
    usage = namedtuple("usage", "total used free")(10**13, 0, gigabytes * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def nvidia_smi(machine, line):
    path = machine / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\necho '{line}'\n")
    path.chmod(0o755)


def no_gpu(machine, monkeypatch, smi="", cuda=None):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if smi:
        nvidia_smi(machine, smi)


def without(monkeypatch, *names):
    """Packages that are not installed."""

    def version(name):
        if name in names:
            raise PackageNotFoundError(name)
        return real(name)

    real = packages.version
    monkeypatch.setattr(packages, "version", version)


def other_version(name):
    if name in ("triton", *map(packages.distribution_of, packages.NOT_NEEDED)):
        raise PackageNotFoundError(name)
    return "0.1"


def planted(machine, monkeypatch, *of_package):
    """A package of the given name, version and code; what it is built for is torch 2.5.1."""
    plant_package(machine / "bin", *of_package, requires="torch==2.5.1")
    monkeypatch.syspath_prepend(machine / "bin")
    monkeypatch.delitem(sys.modules, of_package[0], raising=False)


def without_library(monkeypatch):
    """bitsandbytes as it is where none of its libraries is for this CUDA."""
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary("no library"))


def accelerate_config(machine, text):
    (machine / "hf" / "accelerate").mkdir(parents=True)
    (machine / "hf" / "accelerate" / "default_config.yaml").write_text(text)


STOPPING = {
    "an old Python": (
        lambda m, p: p.setattr(sys, "version_info", (3, 9, 1)), "3.9.1 is too old", "Python 3.10"),
    "a missing package": (
        lambda m, p: without(p, "peft"), "peft is missing", "pip install -r requirements.txt"),
    "a torch that cannot be imported": (
        lambda m, p: p.setitem(sys.modules, "torch", None), "cannot be imported", "install it again"),
    "an NVIDIA card and torch without CUDA": (
        lambda m, p: no_gpu(m, p, "NVIDIA GeForce RTX 3060, 581.15"), "RTX 3060), but torch", "pip uninstall torch"),
    "an old driver": (
        lambda m, p: no_gpu(m, p, "Tesla T4, 535.1", "13.0"), "driver 535.1 is too old", "driver 580 or newer"),
    "a card that this torch has no kernels for": (
        lambda m, p: card(p, "NVIDIA GeForce GTX 1080", 6, 1), "no kernels for its generation (sm_61)", "older CUDA"),
    "a full disk": (
        lambda m, p: room(p, 1), "runs, 1 GB free", "choose another disk with --output_dir"),
    "a file where Hugging Face's folder is": (
        lambda m, p: (m / "hf").write_text(""), "cannot write to", "the variable HF_HOME"),
    "a torchvision that does not fit": (
        lambda m, p: planted(m, p, "torchvision", "0.20.0", "raise RuntimeError('operator nms does not exist')"),
        "0.20.0 does not fit torch 2.13.0", "pip uninstall torchvision; nothing here needs it"),
    "a flash-attn for another torch": (
        lambda m, p: planted(m, p, "flash_attn", "2.7.0", "raise ImportError('undefined symbol: _ZN3c10')"),
        "(undefined symbol: _ZN3c10)", "pip uninstall flash-attn; nothing here needs it"),
    "a triton without its library": (
        lambda m, p: planted(m, p, "triton", "3.1.0", "raise OSError('libtriton.so: cannot open')"),
        "3.1.0 cannot be imported (libtriton.so: cannot open)", "install torch again, as docs/install.md says"),
    "variables of a launcher that is gone": (
        lambda m, p: p.setenv("RANK", "3"), "the environment has RANK=3", "unset them"),
}  # fmt: skip
NOTED = {
    "an xformers for another torch, of which nothing shows yet": (
        lambda m, p: planted(m, p, "xformers", "0.0.28", ""), "built for torch==2.5.1, here is 2.13",
        "pip uninstall xformers"),
    "bitsandbytes without a library": (
        lambda m, p: without_library(p), "no 8-bit optimizers, base_precision nf4", "--no-deps bitsandbytes=="),
    "a package of another version": (
        lambda m, p: p.setattr(packages, "version", other_version), "peft is 0.1, requirements.txt asks for ==", "pip"),
    "a missing package that is not always needed": (
        lambda m, p: without(p, "wandb"), "wandb is missing: no report_to wandb", "pip"),
    "no native bf16": (
        lambda m, p: card(p, "NVIDIA GeForce RTX 2080", 7, 5), "auto uses fp16", "emulated"),
    "memory that others hold": (
        lambda m, p: p.setattr(torch.cuda, "mem_get_info", lambda _: (5 * GIB, 24 * GIB)), "5.0 free", "close them"),
    "little room for a base": (
        lambda m, p: room(p, 5), "5 GB free", "about 14 GB"),
    "DeepSpeed in accelerate's config": (
        lambda m, p: accelerate_config(m, "distributed_type: DEEPSPEED\n"), "DeepSpeed is not used", "start with"),
    "the CPU in accelerate's config": (
        lambda m, p: accelerate_config(m, "use_cpu: true\n"), "trains on the CPU", "start with"),
    "a broken config of accelerate's": (
        lambda m, p: accelerate_config(m, "a: [\n"), "cannot read", "accelerate config"),
    "the CPU in the environment": (
        lambda m, p: p.setenv("ACCELERATE_USE_CPU", "true"), "asks for the CPU", "unset it"),
}  # fmt: skip


def visit(capsys, machine, *arguments):
    """Exit code and what is said."""
    code = doctor.main(["--output_dir", str(machine / "runs"), *arguments])
    return code, capsys.readouterr().out


def test_a_fit_machine_is_fit(machine, capsys):
    nvidia_smi(machine, "NVIDIA GeForce RTX 4090, 581.15")
    code, said = visit(capsys, machine)
    assert code == 0 and "->" not in said, said
    assert "0: NVIDIA GeForce RTX 4090, 24.0 GiB, 23.0 free, driver 581.15" in said and "bf16 is native" in said
    assert list(machine.iterdir()) == [machine / "bin"], "it only looks"


@pytest.mark.skipif(os.name == "nt", reason="the planted command is a shell script")
@pytest.mark.parametrize("fault", [*STOPPING, *NOTED])
def test_a_planted_fault_is_found_with_its_remedy(machine, monkeypatch, capsys, fault):
    plant, what, remedy = {**STOPPING, **NOTED}[fault]
    plant(machine, monkeypatch)
    code, said = visit(capsys, machine)
    assert code == (2 if fault in STOPPING else 0), said
    lines = said.splitlines()
    found = [number for number, line in enumerate(lines) if what in line]
    assert found and remedy in lines[found[0] + 1], said
    assert lines[found[0]].startswith("STOP" if fault in STOPPING else "note")


def test_a_base_is_looked_at(machine, capsys, tiny_base, tmp_path):
    assert visit(capsys, machine, "--base", str(tiny_base))[0] == 0
    code, said = visit(capsys, machine, "--base", str(tmp_path / "nowhere.safetensors"))
    assert code == 2 and "no such base model" in said
    (tmp_path / "sd15").mkdir()
    (tmp_path / "sd15" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    code, said = visit(capsys, machine, "--base", str(tmp_path / "sd15"))
    assert code == 2 and "STOP base" in said
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--bse", "x"])
    assert ended.value.code == 2


def test_the_short_form_is_a_line_or_two(machine, monkeypatch):
    [line] = in_short(torch.device("cpu"), machine / "runs")
    assert torch.__version__ in line and "on the CPU" in line and "500 GB free" in line
    room(monkeypatch, 1)
    without(monkeypatch, "peft")
    line, odd = in_short(torch.device("cuda"), machine / "runs")
    assert "RTX 4090" in line and "peft is missing; " in odd and "1 GB free" in odd and "sdxl_lora.doctor" in odd


@pytest.mark.parametrize("missing", ["psutil", "packaging", "huggingface_hub", "yaml"])
def test_it_works_without_what_is_missing(machine, monkeypatch, capsys, missing):
    accelerate_config(machine, "use_cpu: true\n")
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("sdxl_lora.startup", "sdxl_lora.operating_system"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    code, said = visit(capsys, machine)
    assert "would stop a training: " in said and code in (0, 2)
