"""Samples by themselves: drawn where they belong, with the weights that are shown, and known to be there."""

import torch

from sdxl_lora.run.events import read_events
from sdxl_lora.training.samples import SampleWriter


def writer_of(built):
    return SampleWriter(
        built.config, built.accelerator, built.base, built.model, built.shown, built.data, None, built.run, built.logger
    )


def test_samples_are_drawn_with_the_weights_that_are_shown_and_told_of(build):
    built = build(
        validation_prompt=("a cat", "a dog --w 32"), num_validation_images=1, validation_inference_steps=2,
        ema_decay=0.9,
    )  # fmt: skip
    writer = writer_of(built)
    assert not writer.are_written(2) and writer.newest is None
    writer.write(2)
    names = [f"step-000002-prompt-{number}-image-0.png" for number in (0, 1)]
    assert sorted(path.name for path in writer.folder.iterdir()) == ["grid.png", *names]
    assert writer.are_written(2) and not writer.are_written(3)
    assert writer.newest.size == (64, 64)
    [event] = read_events(built.run.folder / "events.jsonl", "samples")
    assert event["step"] == 2 and event["prompts"] == ["a cat", "a dog"]

    with torch.no_grad():
        for parameter in built.model.adapter_parameters().values():
            parameter += 1.0  # not so its average
    writer.write(3)
    first, second = ((writer.folder / f"step-00000{step}-prompt-0-image-0.png").read_bytes() for step in (2, 3))
    assert first == second
    built.shown.update(9)
    writer.write(4)
    assert (writer.folder / "step-000004-prompt-0-image-0.png").read_bytes() != first


def test_without_prompts_nothing_is_loaded_or_drawn(build):
    built = build()
    writer = writer_of(built)
    writer.write(2)
    assert writer.vae is None and not writer.folder.exists()
