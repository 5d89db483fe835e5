"""`convert`, `combine` and `resize` by algebra on the tiny base."""

import pytest
import torch
from peft import PeftModel

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.lora.formats.reader import read_lora
from tests.helpers.adapters import largest_difference, outputs
from tests.helpers.tools import assert_close, changes, run


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
