"""Replayed micro-steps are the recorded ones, of any size of pictures; where they cannot be had one is told."""

import pytest
import torch

from sdxl_lora.errors import ConfigError
from sdxl_lora.performance.cuda_graphs import RecordedMicroStep
from sdxl_lora.run.events import read_events
from tests.helpers.runs import column, largest_difference, weights_of

CASES = {
    "float32": {},
    "bf16, recomputed": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "dropout, two micro-steps": {"lora_dropout": 0.2, "gradient_accumulation_steps": 2},
    "fp16": {"mixed_precision": "fp16"},
    "averaged": {"ema_decay": 0.9, "optimizer": "adamw8bit"},
}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_learn_what_plain_ones_do(train, two_sizes, tmp_path, case):
    """Also after a checkpoint, and with an epoch's last step, which has fewer pictures."""
    settings = {"train_data_dir": str(two_sizes), "adam_epsilon": 1e-4, "deterministic": True, **CASES[case]}
    plain = train(**settings, max_train_steps=6, output_dir=str(tmp_path / "plain"))
    train(**settings, max_train_steps=4, cuda_graphs=True, output_dir=str(tmp_path / "graphs"))
    graphs = train(**settings, max_train_steps=6, cuda_graphs=True, output_dir=str(tmp_path / "graphs"))
    said = [
        event["text"] for event in read_events(graphs / "events.jsonl", "message") if "cuda_graphs" in event["text"]
    ]
    assert not said
    assert column(graphs, "loss") == pytest.approx(column(plain, "loss"), rel=1e-4)
    assert largest_difference(weights_of(graphs, 6), weights_of(plain, 6)) < 1e-5


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why(monkeypatch):
    """Also on a machine without CUDA, where recording fails; but not where memory does not suffice."""
    said, parameter = [], torch.nn.Parameter(torch.ones(2))

    def compute(batch):
        losses = (parameter * batch["x"]).square()
        losses.sum().backward()
        return losses

    step = RecordedMicroStep(compute, [parameter], said.append)

    def fail(batch):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(step, "_record", fail)
    for _ in range(2):
        assert step({"x": torch.tensor([1.0, 2.0])}).tolist() == [1, 4]
    assert parameter.grad.tolist() == [4, 16]
    assert said == ["going on without --cuda_graphs, which failed: operation not permitted when stream is capturing"]

    def lack(batch):
        raise torch.OutOfMemoryError("2 GiB")

    step = RecordedMicroStep(compute, [parameter], said.append)
    monkeypatch.setattr(step, "_record", lack)
    with pytest.raises(torch.OutOfMemoryError):
        step({"x": torch.ones(2)})


def test_where_graphs_cannot_be_had_one_is_told(train, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cuda_graphs does not go with train_text_encoder"):
        train(cuda_graphs=True, train_text_encoder=True)
    with pytest.raises(ConfigError, match="cuda_graphs does not go with gradient_checkpointing and dropout"):
        train(cuda_graphs=True, gradient_checkpointing=True, rank_dropout=0.1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda_graphs is for one process with a CUDA GPU, here are 1 on cpu"):
        train(cuda_graphs=True, output_dir=str(tmp_path / "run"))
