"""`python -m sdxl_lora.tools`: its word for a wrong file, and quick answers."""

import subprocess
import sys

import pytest
import torch

from sdxl_lora.lora.formats.adapter import plain
from sdxl_lora.lora.formats.writer import save_kohya
from tests.helpers.tools import run


@pytest.fixture(scope="session")
def tiny_base(two_layers):
    """LoRA files have kohya's names where each level has SDXL's two layers."""
    return two_layers


def test_a_wrong_file_gets_a_clear_word_exit_code_2_and_no_output(loras, bases, tmp_path, capsys):
    _, cat, _ = loras["cat"]
    dora, loha, output = loras["dora"][2], loras["loha"][1], tmp_path / "new.safetensors"
    foreign = tmp_path / "foreign.safetensors"
    to_q = ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    save_kohya(foreign, {to_q: plain(torch.ones(1, 1280), torch.ones(1280, 1), 1)})
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    elsewhere = tmp_path / "elsewhere.safetensors"
    deep = ("unet", "mid_block.attentions.0.transformer_blocks.9.attn1.to_q")
    save_kohya(elsewhere, {deep: plain(torch.ones(1, 32), torch.ones(32, 1), 1)})
    for message, arguments in {
        "not a .safetensors file": ("show", text),
        "is a base model": ("check", bases["single"]),
        "is not there": ("convert", tmp_path / "none.safetensors", output),
        "is not an SDXL base model": ("merge", cat, cat, output),
        "it is for another base": ("merge", foreign, bases["single"], output),
        "lacks 1 of the LoRA's modules, such as unet mid_block": ("merge", elsewhere, bases["folder"], output),
        "must end in .safetensors, as the base does": ("merge", cat, bases["single"], tmp_path / "new"),
        "is the base itself": ("merge", cat, bases["single"], bases["single"], "--overwrite"),
        "exists: choose another name": ("merge", cat, bases["folder"], bases["folder"], "--overwrite"),
        "exists: choose another name, or pass --overwrite": ("convert", cat, text),
        "must end in .safetensors": ("convert", cat, tmp_path / "new.bin"),
        "is not a folder: make it first": ("convert", cat, tmp_path / "no" / "new.safetensors"),
        "name it with --base": ("convert", dora, output),
        "is a loha: make it a LoRA first": ("resize", loha, output, "--rank", 2),
        "is not there: give a diffusers folder": ("merge", cat, tmp_path / "none", output),
        "weight nan must be a finite number": ("merge", cat, bases["single"], output, "--weight", "nan"),
        "rank 0 must be at least 1": ("convert", loha, output, "--rank", 0),
        "need finite weights": ("combine", output, "--loras", cat, cat, "--weights", 1, "inf"),
        "give either --rank or --energy": ("resize", cat, output),
        "an energy between 0 and 1": ("resize", cat, output, "--energy", 90),
        "2 LoRAs and 1 weights": ("combine", output, "--loras", cat, cat, "--weights", 1),
        "do not differ in all-linear": ("extract", bases["single"], bases["folder"], output),
        "holds no .safetensors weights": ("extract", tmp_path, bases["folder"], output),
    }.items():
        before = sorted(tmp_path.rglob("*"))
        assert run(*arguments) == 2, arguments
        assert message in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
    assert text.read_text() == "hello"


def test_help_and_a_typo_answer_without_importing_torch():
    code = "import sys; from sdxl_lora.tools.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
