"""`merge` and `extract` by algebra on the tiny base, whole or not at all, in little memory."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.lora.formats.adapter import plain
from sdxl_lora.lora.formats.writer import save_kohya
from tests.helpers.adapters import largest_difference, outputs
from tests.helpers.marks import slow
from tests.helpers.tools import assert_close, changes, run


@pytest.fixture(scope="session")
def tiny_base(two_layers):
    """LoRA files have kohya's names where each level has SDXL's two layers."""
    return two_layers


@pytest.mark.parametrize("base", ["folder", "single"])
@pytest.mark.parametrize("name", ["cat", "dora", *slow("loha", "lokr")])
def test_merge_gives_the_model_that_was_trained(loras, bases, tmp_path, name, base):
    pipeline, kohya, diffusers = loras[name]
    lora = diffusers if name == "dora" else kohya  # the file that holds the adapter itself
    output = tmp_path / ("merged" if base == "folder" else "merged.safetensors")
    assert run("merge", lora, bases[base], output) == 0
    merged = output
    if base == "single":  # back into a folder, through the same names
        merged = tmp_path / "reopened"
        fresh = tiny_sdxl()
        plain_base, changed = load_file(bases[base]), load_file(output)
        assert {key: t.dtype for key, t in plain_base.items()} == {key: t.dtype for key, t in changed.items()}
        assert_unused_tensors_stay(plain_base, changed)
        difference = tmp_path / "difference.safetensors"
        assert run("extract", output, bases["folder"], difference, "--rank", 512, "--targets", "all-linear+conv",
                   "--precision", "fp32") == 0  # fmt: skip
        fresh.load_lora_weights(tmp_path, weight_name=difference.name)
    else:
        fresh = StableDiffusionXLPipeline.from_pretrained(merged)
    assert largest_difference(outputs(fresh), outputs(pipeline)) < 1e-4


def assert_unused_tensors_stay(before, after):
    same = [key for key in before if torch.equal(before[key], after[key])]
    assert len(same) < len(before)
    assert all(key in same for key in before if key.startswith("first_stage_model.") or "norm" in key)


def test_merge_takes_a_weight_and_leaves_the_base_alone(loras, bases, tmp_path):
    _, kohya, _ = loras["dog"]
    before = bases["single"].read_bytes()
    run("merge", kohya, bases["single"], tmp_path / "half.safetensors", "--weight", 0.5)
    run("merge", kohya, bases["single"], tmp_path / "minus.safetensors", "--weight", -1)
    base, half, minus = (load_file(path) for path in (bases["single"], *sorted(tmp_path.glob("*.safetensors"))))
    for key, weight in base.items():
        assert torch.allclose((half[key] - weight) * -2, minus[key] - weight, atol=1e-5)
    assert bases["single"].read_bytes() == before


def test_merging_a_folder_copies_the_rest_but_no_weights_that_lack_the_lora(loras, bases, tmp_path):
    base = tmp_path / "a base, \N{CAT FACE}"
    shutil.copytree(bases["folder"], base)
    kept, left = ["vae/extra.bin", "LICENSE.md"], ["unet/old.fp16.safetensors", "unet/x.bin", "whole.ckpt", ".git/x"]
    for name in kept + left:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    run("merge", loras["cat"][1], base, tmp_path / "merged")
    files = {path.relative_to(tmp_path / "merged").as_posix() for path in (tmp_path / "merged").rglob("*")}
    assert set(kept) <= files and not set(left) & files
    assert (tmp_path / "merged/vae/config.json").read_bytes() == (base / "vae/config.json").read_bytes()


@pytest.mark.parametrize("base", ["folder", "single"])
def test_extract_finds_the_lora_that_was_merged(loras, bases, tmp_path, base):
    _, cat, _ = loras["cat"]
    tuned, found = tmp_path / "tuned.safetensors", tmp_path / "found.safetensors"
    run("merge", cat, bases["single"], tuned)
    options = ("--rank", 4, "--targets", "all-linear+conv", "--precision", "fp32")
    assert run("extract", tuned, bases[base], found, *options) == 0
    assert_close(changes(found), changes(cat))


def test_a_full_disk_leaves_nothing_and_exits_5(loras, bases, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for base, output in ((bases["single"], "new.safetensors"), (bases["folder"], "new")):
        assert run("merge", loras["cat"][1], base, tmp_path / output) == 5
        assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


MEASURED_MERGE = """
import json, resource, sys
from pathlib import Path
from sdxl_lora.tools import models
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
models.merge(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 1.0)
print(json.dumps(peak() - before))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_merging_needs_memory_for_a_tensor_not_for_a_model(tmp_path):
    width, layers = 1024, 60
    names = [f"transformer_blocks.{i}.attn1.to_{part}" for i in range(layers // 3) for part in "qkv"]
    base = {f"model.diffusion_model.middle_block.1.{n}.weight": torch.zeros(width, width).half() for n in names}
    save_file(base, tmp_path / "base.safetensors")
    adapter = plain(torch.ones(1, width), torch.ones(width, 1), 1)
    save_kohya(tmp_path / "lora.safetensors", {("unet", f"mid_block.attentions.0.{n}"): adapter for n in names})
    paths = [tmp_path / f"{name}.safetensors" for name in ("lora", "base", "merged")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED_MERGE, *map(str, paths)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    size = paths[1].stat().st_size
    assert size > 120e6
    assert json.loads(done.stdout) < 0.4 * size  # a 2 MB tensor, its float32 copies, and what Python allocates
    assert load_file(paths[2])[f"model.diffusion_model.middle_block.1.{names[0]}.weight"].eq(1).all()
