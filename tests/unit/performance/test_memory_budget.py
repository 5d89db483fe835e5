"""The memory ladder: counted as it is in real tensors, and the highest rung that fits is taken."""

import pytest
import torch

from examples.full_sdxl import full_sdxl
from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import ConfigError, OutOfMemory
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.performance.activation_memory import step_bytes
from sdxl_lora.performance.device_memory import out_of_memory_advice
from sdxl_lora.performance.frozen_layers import use_memory_saving_layers
from sdxl_lora.performance.fused_lora import fuse_lora
from sdxl_lora.performance.memory_budget import (
    GIB,
    OUTER,
    MemoryCount,
    MemoryLevel,
    base_bytes,
    choose,
    memory_levels,
    smaller_settings,
)
from sdxl_lora.performance.quantization import quantize_linears
from sdxl_lora.run.events import read_events
from sdxl_lora.training.batch_shape import settle, settle_compiling

FAST = MemoryLevel("none", "adamw", None)


def test_the_ladder_gives_up_what_changes_no_number_first():
    levels = memory_levels(FAST)
    assert [(level.recomputed, level.optimizer, level.base_precision, level.streams) for level in levels] == [
        ("none", "adamw", None, False), (OUTER, "adamw", None, False), ("all", "adamw", None, False),
        ("all", "adamw8bit", None, False), ("all", "adamw8bit", "int8", False), ("all", "adamw8bit", "nf4", False),
        ("all", "adamw8bit", "nf4", True),
    ]  # fmt: skip
    assert all(memory_levels(level) == levels[number:] for number, level in enumerate(levels))
    some = MemoryLevel("mid_block", "prodigy", "fp8")
    below = [MemoryLevel("all", "prodigy", *base) for base in (("fp8",), ("nf4",), ("nf4", True))]
    assert memory_levels(some) == [some, *below]
    streamed = MemoryLevel("all", "adamw", None, True)
    assert [level.streams for level in memory_levels(streamed)] == 4 * [True]
    needs = dict(zip(levels, (9, 8, 6, 5, 4, 3, 2.5), strict=True))
    assert choose(levels, needs.get, 7) == (levels[2], 6)
    with pytest.raises(ConfigError, match=r"too small.*--base_precision nf4 --stream_base --optimizer adamw8bit"):
        choose(levels, needs.get, 2)


@pytest.mark.parametrize(
    "settings, advice",
    [
        ({"gradient_checkpointing": True, "base_precision": "int8"}, [
            "--gradient_checkpointing --base_precision int8 --optimizer adamw8bit",
            "--gradient_checkpointing --base_precision nf4 --optimizer adamw8bit",
            "--gradient_checkpointing --base_precision nf4 --stream_base --optimizer adamw8bit",
        ]),
        ({"memory_budget": "8GB"}, ["a --memory_budget below 8GB"]),
        ({"base_precision": "nf4", "optimizer": "prodigy", "gradient_checkpointing": True, "train_batch_size": 2}, [
            "--gradient_checkpointing --base_precision nf4 --stream_base --optimizer prodigy",
            "a smaller --train_batch_size with more --gradient_accumulation_steps",
        ]),
        ({"base_precision": "nf4", "use_8bit_adam": True, "gradient_checkpointing": True, "train_batch_size": "auto",
          "gradient_accumulation_steps": 2}, [
            "--gradient_checkpointing --base_precision nf4 --stream_base --optimizer adamw8bit",
            "a number in place of --train_batch_size auto, smaller than what it chose",
        ]),
    ],
)  # fmt: skip
def test_out_of_memory_advises_the_rungs_below(train_config, settings, advice):
    config = train_config(**settings)
    smaller = smaller_settings(config)
    with (
        pytest.raises(OutOfMemory, match="out of memory at 64 px") as raised,
        out_of_memory_advice(torch.device("cpu"), 64, config.batch.train_batch_size, smaller),
    ):
        raise torch.OutOfMemoryError("a test")
    assert str(raised.value).endswith(f"Try one after the other: {'; '.join([*advice, 'a smaller --resolution'])}.")


def test_products_in_8_bits_are_not_advised_to_have_another_base(train_config):
    config = train_config(base_precision="int8", base_products="8bit")
    advice = smaller_settings(config)
    assert advice and not [flags for flags in advice if "nf4" in flags]


@pytest.mark.parametrize(
    "asked, without",
    [
        ({"compile": "on"}, ("--stream_base",)),
        ({"cuda_graphs": "on"}, ("--stream_base",)),
        ({"cuda_graphs": "on", "lora_dropout": 0.1}, ("--stream_base", "--gradient_checkpointing")),
        ({"init_lora_weights": "pissa"}, ("--stream_base", "--base_precision")),
    ],
)
def test_no_level_is_advised_or_taken_that_the_settings_refuse(train_config, asked, without):
    for flags in smaller_settings(train_config(**asked)):
        assert not [flag for flag in without if flag in flags]
    if "init_lora_weights" in asked:  # which has no budget at all
        return
    config = train_config(**asked, memory_budget="8GB")
    with pytest.raises(ConfigError, match=r"memory_budget .* is too small") as raised:
        settle(config, lambda level, batch: 0 if level.streams else 2, 1, print)
    assert not [flag for flag in without if flag in str(raised.value)]


def test_where_streaming_turns_off_what_auto_had_compiled_it_is_said(train_config):
    said, asked = [], train_config(memory_budget="8GB", mixed_precision="bf16")
    compiled = settle_compiling(asked, "cuda", True, 1e12, None, said.append)
    config, _ = settle(compiled, lambda level, batch: 0 if level.streams else 2, 1, said.append, asked)
    assert (compiled.compute.compile, config.compute.compile, config.compute.stream_base) == ("on", "off", True)
    assert "--stream_base --optimizer adamw8bit, compile off; expects" in said[-1]


@pytest.mark.parametrize("kind", [None, "int8", "nf4", "fp8"])
def test_counted_weights_are_those_of_the_loaded_base(kind):
    unet = tiny_sdxl().unet.to(torch.bfloat16).requires_grad_(False)
    counted, _ = base_bytes(unet, kind, torch.bfloat16)
    if kind:
        quantize_linears(unet, kind)
    assert counted == sum(tensor.nbytes for tensor in (*unet.parameters(), *unet.buffers()))


def test_the_full_base_packed_is_a_good_deal_smaller():
    unet = full_sdxl()["unet"].requires_grad_(False)
    for kind, gib in ((None, 4.78), ("int8", 2.73), ("fp8", 2.73), ("nf4", 1.77)):
        assert base_bytes(unet, kind, torch.bfloat16)[0] / GIB == pytest.approx(gib, abs=0.03), kind
    for kind, gib in ((None, 0.24), ("nf4", 0.21)):
        assert base_bytes(unet, kind, torch.bfloat16, True)[0] / GIB == pytest.approx(gib, abs=0.03), kind


@pytest.mark.slow
def test_the_full_model_takes_what_was_measured():
    """Beyond the weights, at 1024 px: 7.27 GiB with PEFT under autocast, 5.28 in pure bfloat16, 0.51 recomputed."""
    unet = full_sdxl()["unet"].to(torch.bfloat16)
    trained = add_lora(unet, 16, 16)
    unet.train()
    peft = step_bytes(unet, torch.bfloat16, 1, (1024, 1024), autocast=True)
    assert peft / GIB == pytest.approx(7.27, rel=0.02)
    fuse_lora(unet)
    assert step_bytes(unet, torch.bfloat16, 1, (1024, 1024)) / GIB == pytest.approx(5.28, rel=0.02)
    use_memory_saving_layers(unet)
    assert step_bytes(unet, torch.bfloat16, 1, (1024, 1024)) / GIB == pytest.approx(4.31, rel=0.01)
    count = MemoryCount(unet, None, trained, False, torch.bfloat16, False, (1024, 1024), 1, {})
    expected = {"all": 6.44, "int8": 4.28, "nf4": 3.31}
    assert count(MemoryLevel("all", "adamw", None), 1) / GIB == pytest.approx(expected["all"], rel=0.02)
    for kind in ("int8", "nf4"):
        assert count(MemoryLevel("all", "adamw8bit", kind), 1) / GIB == pytest.approx(expected[kind], rel=0.02)
    packed, streamed = (count(MemoryLevel("all", "adamw8bit", "nf4", streams), 1) for streams in (False, True))
    assert (packed - streamed) / GIB == pytest.approx(1.55, abs=0.02)


def test_a_run_takes_the_highest_rung_that_fits_and_says_so(train, tmp_path, monkeypatch):
    from sdxl_lora.performance import memory_budget as budget

    monkeypatch.setattr(budget, "CUDA_CONTEXT", 0.0)
    train(max_train_steps=1, memory_budget="1GB", output_dir=str(tmp_path / "large"))
    said = [event["text"] for event in read_events(tmp_path / "large" / "events.jsonl", "message")]
    assert "memory_budget 1GB: --optimizer adamw; expects 0.0 GiB" in said
    with pytest.raises(ConfigError, match=r"memory_budget 0\.0 GiB is too small: the minimum is 0\.0 GiB"):
        train(max_train_steps=1, memory_budget="0.0001", output_dir=str(tmp_path / "small"))
    with pytest.raises(ConfigError, match="memory_budget is 'much'"):
        train(memory_budget="much")


@pytest.mark.gpu
def test_a_run_reserves_what_was_expected(train, tmp_path):
    torch.cuda.reset_peak_memory_stats()
    train(max_train_steps=2, mixed_precision="bf16", memory_budget="8GB")
    assert torch.cuda.max_memory_reserved() < 0.5 * GIB
