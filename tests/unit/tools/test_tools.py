"""`python -m sdxl_lora.tools`: each tool by algebra on the tiny base, and its word for a wrong file."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.adapter import delta, plain
from sdxl_lora.lora.formats.metadata import lora_metadata
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.formats.writer import save_kohya
from sdxl_lora.models.base_weights import base_sha256
from sdxl_lora.tools.__main__ import main
from tests.helpers.adapters import largest_difference, outputs, tiny_with_lora
from tests.helpers.original_layout import write_original_layout


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """{name: (pipeline with the adapter, its kohya file, its diffusers file)} in fp32."""
    made = {}
    for name, options in {
        "cat": {"targets": "all-linear+conv"},
        "dog": {"targets": "attention", "rank": 3, "alpha": 5},
        "dora": {"targets": "attention+ff", "use_dora": True},
        "loha": {"targets": "attention+ff", "kind": "loha", "rank": 2},
        "lokr": {"targets": "all-linear+conv", "kind": "lokr", "rank": 2},
    }.items():
        folder = tmp_path_factory.mktemp(name)
        pipeline, models = tiny_with_lora(**{"rank": 4, "alpha": 2, **options})
        about = lora_metadata(name, trigger_phrase=f"sks {name}")
        made[name] = (pipeline, *write_lora_files(folder, name, models, "fp32", about, merged_rank=512))
    return made


@pytest.fixture(scope="module")
def bases(tiny_base, tmp_path_factory):
    """The tiny base as a diffusers folder and as one file in the original layout."""
    single = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    write_original_layout(tiny_sdxl(), single)
    return {"folder": tiny_base, "single": single}


def run(*arguments):
    return main([str(argument) for argument in arguments])


def changes(path):
    return {key: delta(adapter) for key, adapter in read_lora(path).adapters.items()}


def assert_close(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    assert max((found[key] - expected[key]).abs().max().item() for key in expected) < tolerance


def test_convert_keeps_every_change_through_every_layout(loras, tmp_path):
    _, kohya, _ = loras["cat"]
    expected, path = changes(kohya), kohya
    for to in ("diffusers", "kohya-diffusers", "peft", "kohya"):
        output = tmp_path / f"{to}{'' if to == 'peft' else '.safetensors'}"
        if path.is_dir():  # PEFT has a folder for each component
            for component in ("unet", "text_encoder", "text_encoder_2"):
                assert (path / component / "adapter_config.json").is_file()
            path = path / "unet"
            expected = {key: value for key, value in expected.items() if key[0] == "unet"}
        assert run("convert", path, output, "--to", to, "--precision", "fp32") == 0
        if to != "peft":
            assert_close(changes(output), expected)
        path = output


def test_a_converted_peft_folder_opens_in_peft(loras, tmp_path):
    pipeline, kohya, _ = loras["cat"]
    assert run("convert", kohya, tmp_path / "peft", "--to", "peft", "--precision", "fp32") == 0
    fresh = tiny_sdxl()
    for component in ("unet", "text_encoder", "text_encoder_2"):
        PeftModel.from_pretrained(getattr(fresh, component), tmp_path / "peft" / component)
    assert largest_difference(outputs(fresh), outputs(pipeline)) < 1e-5


def test_convert_keeps_metadata_but_not_what_is_stale(loras, tmp_path):
    _, kohya, _ = loras["cat"]
    run("convert", kohya, tmp_path / "new.safetensors", "--precision", "bf16")
    before, after = read_lora(kohya).metadata, read_lora(tmp_path / "new.safetensors").metadata
    assert after["modelspec.trigger_phrase"] == "sks cat"
    assert after["ss_output_name"] == "new"
    assert after["sshs_model_hash"] != before["sshs_model_hash"]


@pytest.mark.parametrize("base", ["folder", "single"])
@pytest.mark.parametrize("name", ["cat", "dora", "loha", "lokr"])
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


def test_combine_is_the_weighted_sum_exactly_or_nearly_at_a_rank(loras, tmp_path):
    _, cat, _ = loras["cat"]
    _, dog, _ = loras["dog"]
    exact, small = tmp_path / "exact.safetensors", tmp_path / "small.safetensors"
    arguments = ("--loras", cat, dog, "--weights", 0.8, -0.5, "--precision", "fp32")
    assert run("combine", exact, *arguments) == 0
    first, second = changes(cat), changes(dog)
    expected = {key: 0.8 * first[key] - 0.5 * second.get(key, torch.zeros(())) for key in first}
    assert_close(changes(exact), expected)
    file = read_lora(exact)
    assert {adapter.rank for adapter in file.adapters.values()} == {7}
    assert file.metadata["modelspec.trigger_phrase"] == "sks cat, sks dog"

    assert run("combine", small, *arguments, "--rank", 5) == 0
    for key, change in changes(small).items():
        values = torch.linalg.svdvals(expected[key])
        assert (change - expected[key]).norm().item() == pytest.approx(values[5:].norm().item(), abs=1e-4)


def test_resize_keeps_the_largest_singular_values(loras, tmp_path):
    _, cat, _ = loras["cat"]
    for option, value in (("--rank", 2), ("--energy", 0.9)):
        output = tmp_path / f"{value}.safetensors"
        assert run("resize", cat, output, option, value, "--precision", "fp32") == 0
        resized = changes(output)
        for key, change in changes(cat).items():
            values = torch.linalg.svdvals(change).square()
            lost = ((change - resized[key]).square().sum() / values.sum()).item()
            if option == "--rank":
                assert lost == pytest.approx((values[2:].sum() / values.sum()).item(), abs=1e-4)
            else:
                needed = int((values.cumsum(0) / values.sum() < 0.9).sum()) + 1
                assert lost == pytest.approx((values[needed:].sum() / values.sum()).item(), abs=1e-4)
        for component in ("unet", "text_encoder"):
            ranks = {a.rank for (part, _), a in read_lora(output).adapters.items() if part == component}
            assert len(ranks) == 1  # padded: diffusers reads one rank per component


@pytest.mark.parametrize("base", ["folder", "single"])
def test_extract_finds_the_lora_that_was_merged(loras, bases, tmp_path, base):
    _, cat, _ = loras["cat"]
    tuned, found = tmp_path / "tuned.safetensors", tmp_path / "found.safetensors"
    run("merge", cat, bases["single"], tuned)
    options = ("--rank", 4, "--targets", "all-linear+conv", "--precision", "fp32")
    assert run("extract", tuned, bases[base], found, *options) == 0
    assert_close(changes(found), changes(cat))


def test_the_randomised_svd_is_as_good_as_the_exact_one():
    from sdxl_lora.lora.formats.adapter import svd_lora

    generator = torch.Generator().manual_seed(0)
    change = torch.randn(700, 24, generator=generator) @ torch.randn(24, 600, generator=generator)
    change += 0.01 * torch.randn(700, 600, generator=generator)
    state = torch.get_rng_state()
    lora, kept = svd_lora(change, 0, 16)
    assert torch.equal(torch.get_rng_state(), state)
    values = torch.linalg.svdvals(change).square()
    assert kept == pytest.approx((values[:16].sum() / values.sum()).item(), abs=1e-4)
    assert (delta(lora) - change).square().sum().item() == pytest.approx(values[16:].sum().item(), rel=1e-3)


def test_a_change_of_low_rank_stays_so_whatever_rank_is_allowed():
    from sdxl_lora.lora.formats.adapter import svd_lora, truncate

    generator = torch.Generator().manual_seed(0)
    change = torch.randn(60, 3, generator=generator) @ torch.randn(3, 80, generator=generator)
    lora, kept = svd_lora(change, 0, 32)
    assert (lora.rank, kept) == (3, pytest.approx(1, abs=1e-6))
    assert truncate(lora, 0, 8)[0].rank == 3
    assert svd_lora(torch.zeros(4, 5), 0, 2)[0].rank == 1  # a LoRA of zeros


def test_dora_loha_and_lokr_become_a_lora_that_changes_the_same(loras, bases, tmp_path):
    for name in ("dora", "loha", "lokr"):
        pipeline, kohya, diffusers = loras[name]
        source, to = (diffusers, "kohya") if name == "dora" else (kohya, "diffusers")
        output = tmp_path / f"{name}.safetensors"
        options = ("--to", to, "--rank", 512, "--precision", "fp32", "--base", bases["single"])
        assert run("convert", source, output, *options) == 0
        fresh = tiny_sdxl()
        fresh.load_lora_weights(tmp_path, weight_name=output.name)
        assert largest_difference(outputs(fresh), outputs(pipeline)) < 1e-4


def test_show_tells_ranks_strengths_norms_clients_and_metadata(loras, capsys):
    _, kohya, diffusers = loras["dog"]
    assert run("show", kohya) == 0
    page = capsys.readouterr().out
    count = sum(component == "unet" for component, _ in changes(kohya))
    assert f"unet: {count} modules, rank 3, alpha 5, strength 1.66667" in page
    norm = sum(c.square().sum() for (part, name), c in changes(kohya).items() if name.startswith("mid_block")).sqrt()
    assert f"norm of the change {norm:.4g}" in page.split("mid_block")[1].split("\n")[0]
    assert all(f"{client}: loads" in page for client in ("diffusers", "ComfyUI", "A1111", "Forge", "InvokeAI"))
    assert "modelspec.trigger_phrase: sks dog" in page
    assert "keys such as lora_" in page and "self_attn.q_proj  rank" not in page
    run("show", kohya, "--keys")
    key = ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
    line = f"{key[1]}  rank 3  alpha 5  norm {changes(kohya)[key].norm():.4g}"
    assert line in capsys.readouterr().out
    run("show", diffusers)
    assert "ComfyUI: not sure: convert --to kohya" in capsys.readouterr().out
    run("show", loras["loha"][1])
    assert "diffusers: no: convert --to diffusers --rank N" in capsys.readouterr().out
    run("show", loras["dora"][2])
    assert "A1111: no: convert --to kohya --base" in capsys.readouterr().out


def test_show_names_the_files_that_fail_silently(loras, tmp_path, capsys):
    good = load_file(loras["dog"][1])
    path = tmp_path / "bad.safetensors"

    def verdict(tensors, metadata):
        save_file(tensors, path, metadata)
        run("show", path)
        return capsys.readouterr().out

    sdxl = {"ss_base_model_version": "sdxl_base_v1-0"}
    assert "A1111: hides it" in verdict(good, {})
    key = next(key for key in good if key.endswith("to_q.alpha"))
    assert "wrong strength (several ranks or alphas in unet)" in verdict({**good, key: torch.tensor(1.0)}, sdxl)
    only_q = {key: t for key, t in good.items() if "te1" not in key or "q_proj" in key}
    assert "raises (text_encoder without all of q, k, v, out)" in verdict(only_q, sdxl)
    unprefixed = {key.replace("te1_text_model_", "te1_"): t for key, t in good.items()}
    assert "drops the text encoders" in verdict(unprefixed, sdxl)
    assert "raises (lora_adapter_metadata in the header)" in verdict(good, {**sdxl, "lora_adapter_metadata": "{}"})


def test_check_finds_what_is_not_finite_zero_or_far_out_of_line(loras, tmp_path, capsys):
    assert run("check", loras["dog"][1]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    tensors = load_file(loras["dog"][1])
    ups = [key for key in tensors if key.startswith("lora_unet") and key.endswith("lora_up.weight")]
    tensors[ups[0]] = torch.full_like(tensors[ups[0]], float("nan"))
    tensors[ups[1]] = torch.zeros_like(tensors[ups[1]])
    tensors[ups[2]] = tensors[ups[2]] * 1000
    tensors = {key: t * 0 if "te2" in key and "alpha" not in key else t for key, t in tensors.items()}
    save_file(tensors, tmp_path / "bad.safetensors")
    assert run("check", tmp_path / "bad.safetensors") == 3
    page = capsys.readouterr().out
    assert "lora_up holds NaN or infinity" in page
    assert "warning: unet: 1 of " in page and "modules are zero, such as" in page
    assert "times as much as the median module" in page
    assert "error: text_encoder_2: all 12 modules are zero" in page
    assert "2 errors, 2 warnings" in page


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
        "give --rank or --energy": ("resize", cat, output),
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


def test_help_and_a_typo_answer_without_importing_torch():
    code = "import sys; from sdxl_lora.tools.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_bases_hash_is_its_files_or_its_unets(bases, tmp_path):
    single = hashlib.sha256(bases["single"].read_bytes()).hexdigest()
    assert base_sha256(bases["single"]) == single
    unet = bases["folder"] / "unet" / "diffusion_pytorch_model.safetensors"
    assert base_sha256(bases["folder"]) == hashlib.sha256(unet.read_bytes()).hexdigest()
    (tmp_path / ("ab" * 32)).write_bytes(b"as the Hub's cache names its files")
    (tmp_path / "sdxl.safetensors").symlink_to(tmp_path / ("ab" * 32))
    assert base_sha256(tmp_path / "sdxl.safetensors") == "ab" * 32
    assert base_sha256("stabilityai/stable-diffusion-xl-base-1.0") == ""
