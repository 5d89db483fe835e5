"""Checkpoints by themselves: what they are given to hold comes back, in the order it was given."""

import json

import pytest
import torch

from sdxl_lora.errors import CheckpointError
from sdxl_lora.lora.state import lora_state
from sdxl_lora.run.events import read_events
from sdxl_lora.training.checkpointer import AdapterState, Checkpointer
from tests.helpers.runs import assert_equal_weights


class Noted:
    """Keeps a number; notes when it was asked."""

    def __init__(self, name, asked):
        self.name, self.asked, self.number = name, asked, 1

    def save(self, folder, step):
        self.asked.append(("save", self.name, step))
        (folder / self.name).write_text(str(self.number))

    def load(self, folder):
        self.asked.append(("load", self.name))
        self.number = int((folder / self.name).read_text())


def test_what_a_checkpoint_is_given_to_hold_comes_back(build):
    built, asked, said = build(checkpoints_total_limit=2), [], []
    one, two = Noted("one", asked), Noted("two", asked)
    stateful = [AdapterState(built.model.components), one, two]
    checkpointer = Checkpointer(
        built.accelerator, built.run, built.config.checkpoint, stateful, {"rank": 4, "targets": ["a"]}
    )
    assert checkpointer.restore(said.append) == 0 and asked == [] and said == []
    before = lora_state(built.model.unet)
    checkpointer.save(1)
    checkpointer.save(2)
    one.number = 7
    folder = checkpointer.save(3)
    assert asked == [("save", name, step) for step in (1, 2, 3) for name in ("one", "two")]
    assert {path.name for path in built.run.folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert not (folder / "model.safetensors").exists(), "the base is not in it"
    assert built.run.status["last_checkpoint"] == "checkpoint-3"
    assert [event["step"] for event in read_events(built.run.folder / "events.jsonl", "checkpoint")] == [1, 2, 3]
    assert json.loads((folder / "manifest.json").read_text())["facts"] == {"rank": 4, "targets": ["a"]}

    one.number = 0
    with torch.no_grad():
        for parameter in built.model.adapter_parameters().values():
            parameter.zero_()
    assert checkpointer.restore(said.append) == 3
    assert_equal_weights(lora_state(built.model.unet), before)
    assert one.number == 7 and asked[-2:] == [("load", "one"), ("load", "two")]
    checkpointer.fingerprint["rank"] = 8
    with pytest.raises(CheckpointError, match=r"rank +4 +8"):
        checkpointer.restore(said.append)
