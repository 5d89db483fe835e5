"""The memory ladder: counted as it is in real tensors, and the highest rung that fits is taken."""

import pytest
import torch

from examples.full_sdxl import full_sdxl
from sdxl_lora.budget import GIB, MemoryCount, Rung, base_bytes, choose, next_rungs, peak_bytes
from sdxl_lora.errors import ConfigError
from sdxl_lora.events import read_events
from sdxl_lora.fused_lora import fuse_lora
from sdxl_lora.lora import add_lora
from sdxl_lora.quantize import quantize_linears

FAST = Rung("none", "adamw", None)


def test_the_ladder_gives_up_what_changes_no_number_first():
    rungs = [FAST, *next_rungs(FAST)]
    assert [(rung.recomputed, rung.optimizer, rung.base_precision) for rung in rungs] == [
        ("none", "adamw", None), ("outer", "adamw", None), ("all", "adamw", None), ("all", "adamw8bit", None),
        ("all", "adamw8bit", "int8"), ("all", "adamw8bit", "nf4"),
    ]  # fmt: skip
    assert next_rungs(rungs[-1]) == [] and next_rungs(rungs[3]) == rungs[4:]
    needs = dict(zip(rungs, (9, 8, 6, 5, 4, 3), strict=True))
    assert choose(rungs, needs.get, 7) == (rungs[2], 6)
    with pytest.raises(ConfigError, match=r"too small.*--base_precision nf4 --optimizer adamw8bit"):
        choose(rungs, needs.get, 2)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_counted_weights_are_those_that_packing_leaves(tiny_base, kind):
    from sdxl_lora.models import Base, load_unet

    unet = load_unet(Base(str(tiny_base)), torch.bfloat16)
    counted, _ = base_bytes(unet, kind, torch.bfloat16)
    quantize_linears(unet, kind)
    held = [*unet.parameters(), *unet.buffers()]
    assert counted == sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.slow
def test_the_full_model_takes_what_was_measured():
    """5.28 GiB beyond the weights at 1024 px in pure bfloat16, 0.51 recomputed; 4.78 GiB of weights."""
    unet = full_sdxl()["unet"].to(torch.bfloat16)
    assert base_bytes(unet.requires_grad_(False), None, torch.bfloat16)[0] / GIB == pytest.approx(4.78, abs=0.01)
    add_lora(unet, 16, 16)
    fuse_lora(unet.train())
    assert peak_bytes(unet, torch.bfloat16, 1, 1024, 1024) / GIB == pytest.approx(5.28, rel=0.02)
    count = MemoryCount(unet, torch.bfloat16, 1, (1024, 1024), 1, 0)
    expected = {"all": 6.44, "int8": 4.28, "nf4": 3.31}
    assert count(Rung("all", "adamw", None)) / GIB == pytest.approx(expected["all"], rel=0.02)
    for kind in ("int8", "nf4"):
        assert count(Rung("all", "adamw8bit", kind)) / GIB == pytest.approx(expected[kind], rel=0.02)


def test_a_run_takes_the_highest_rung_that_fits_and_says_so(train, tmp_path, monkeypatch):
    from sdxl_lora import budget

    monkeypatch.setattr(budget, "CUDA_CONTEXT", 0.0)
    train(max_train_steps=1, memory_budget="1GB", output_dir=str(tmp_path / "large"))
    said = [event["text"] for event in read_events(tmp_path / "large" / "events.jsonl", "message")]
    assert "memory_budget 1GB: --optimizer adamw; expects 0.0 GiB" in said
    with pytest.raises(ConfigError, match=r"memory_budget 0\.0 GiB is too small: the least is 0\.0 GiB"):
        train(max_train_steps=1, memory_budget="0.0001", output_dir=str(tmp_path / "small"))
    with pytest.raises(ConfigError, match="memory_budget is 'much'"):
        train(memory_budget="much")


@pytest.mark.gpu
def test_a_run_reserves_what_was_expected(train, tmp_path):
    torch.cuda.reset_peak_memory_stats()
    train(max_train_steps=2, mixed_precision="bf16", memory_budget="8GB")
    assert torch.cuda.max_memory_reserved() < 0.5 * GIB
