"""Recomputed and compiled blocks give what plain ones give; what cannot be compiled runs all the same."""

from types import SimpleNamespace

import pytest
import torch

from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import Base, load_unet
from sdxl_lora.performance import compute
from sdxl_lora.performance.compute import checkpoint_blocks, checkpointed_blocks, native_bfloat16
from sdxl_lora.run.events import read_events
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.runs import assert_equal_weights, column, largest_difference, weights_of


def losses(run):
    return column(run, "loss")


def test_only_the_named_blocks_are_recomputed(tiny_base):
    unet = load_unet(Base(str(tiny_base)), torch.float32)
    assert checkpointed_blocks(unet) == [
        "down_blocks.0", "down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1", "up_blocks.2", "mid_block",
    ]  # fmt: skip
    checkpoint_blocks(unet, ["up_blocks.1"])
    on = {name for name, module in unet.named_modules() if getattr(module, "gradient_checkpointing", False)}
    assert on and all(name.startswith("up_blocks.1") for name in on) and "up_blocks.1" in on
    with pytest.raises(ValueError, match=r"has up_blocks\.7, the UNet's blocks are down_blocks\.0"):
        checkpoint_blocks(unet, ["up_blocks.7"])


def test_recomputing_changes_no_weight(train, tmp_path):
    plain = train(max_train_steps=2, output_dir=str(tmp_path / "plain"))
    settings = {"max_train_steps": 2, "gradient_checkpointing": True}
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    some = train(**settings, gradient_checkpointing_blocks=("up_blocks.1",), output_dir=str(tmp_path / "some"))
    for run in (whole, some):
        assert_equal_weights(weights_of(run, 2), weights_of(plain, 2))
    with pytest.raises(ConfigError, match="gradient_checkpointing_blocks has nowhere"):
        train(gradient_checkpointing=True, gradient_checkpointing_blocks=("nowhere",), output_dir=str(tmp_path / "no"))


@pytest.mark.slow
def test_compiled_blocks_learn_the_same_and_compile_no_more_after_each_size_was_seen(
    train, tmp_path, two_sizes, monkeypatch
):
    """Recomputing and resuming included. Counted by a compiler that hands its graphs to the eager one."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, counts, do = CompileCounterWithBackend("aot_eager"), [], TrainStep.__call__

    def counting(self, batch, step, learning_rate):
        do(self, batch, step, learning_rate)
        counts.append((batch.micro_batches[0][1]["latents"].shape[2:], counter.frame_count))

    settings = {"train_data_dir": str(two_sizes), "gradient_checkpointing": True, "adam_epsilon": 1e-4}
    plain = train(**settings, max_train_steps=6, output_dir=str(tmp_path / "plain"))
    monkeypatch.setattr(compute, "COMPILER", counter)
    monkeypatch.setattr(TrainStep, "__call__", counting)
    train(**settings, compile="on", max_train_steps=5, output_dir=str(tmp_path / "compiled"))
    sizes_seen = [len({size for size, _ in counts[: number + 1]}) for number in range(len(counts))]
    both = sizes_seen.index(2)
    assert counts[0][1] > 0 and both < 4
    assert {count for _, count in counts[both:]} == {counts[both][1]}, "compiled again after each size was seen"
    compiled = train(**settings, compile="on", max_train_steps=6, output_dir=str(tmp_path / "compiled"))
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    assert weights_of(compiled, 6).keys() == weights_of(plain, 6).keys()
    assert largest_difference(weights_of(compiled, 6), weights_of(plain, 6)) < 1e-6


def test_what_cannot_be_compiled_runs_as_it_is_and_says_why(train, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler found")

    plain = train(max_train_steps=2, output_dir=str(tmp_path / "plain"))
    monkeypatch.setattr(compute, "COMPILER", broken)
    run = train(max_train_steps=2, compile="on", output_dir=str(tmp_path / "run"))
    said = [event["text"] for event in read_events(run / "events.jsonl", "message") if "--compile" in event["text"]]
    assert len(said) == 1 and "no C++ compiler found" in said[0]
    assert_equal_weights(weights_of(run, 2), weights_of(plain, 2))


@pytest.mark.parametrize(
    ("device", "hip", "card", "native"),
    [
        ("cuda", None, (7, 0), False),  # V100
        ("cuda", None, (7, 5), False),  # T4, RTX 20: emulated, and slow
        ("cuda", None, (8, 0), True),
        ("cuda", None, (12, 0), True),
        ("cuda", "7.0", "gfx906:sramecc+:xnack-", False),
        ("cuda", "7.0", "gfx1030", False),
        ("cuda", "7.0", "gfx90a:sramecc+:xnack-", True),
        ("cuda", "7.0", "gfx1100", True),
        ("xpu", None, False, False),
        ("xpu", None, True, True),
        ("mps", None, 13, False),
        ("mps", None, 14, True),
        ("cpu", None, {"avx512_f": True}, False),
        ("cpu", None, {"amx_bf16": True}, True),
        ("meta", None, None, False),
    ],
)
def test_bfloat16_is_native_only_where_the_device_computes_in_it(monkeypatch, device, hip, card, native):
    facts = SimpleNamespace(gcnArchName=card, has_bfloat16_conversions=card)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: card >= major)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: card)
    assert native_bfloat16(torch.device(device)) is native
