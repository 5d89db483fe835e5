"""Replayed micro-steps are the recorded ones, of any size of images; where they cannot be had one is told."""

import re

import pytest
import torch

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.sections.data import DataConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.performance import cuda_graphs
from sdxl_lora.performance.cuda_graphs import RecordedMicroStep
from sdxl_lora.run.events import read_events
from sdxl_lora.training.batch_shape import settle_graphs
from tests.helpers.launch import launch
from tests.helpers.recorder import OnTheCpu, record_on_the_cpu
from tests.helpers.runs import assert_equal_weights, column, largest_difference, weights_of

CASES = {
    "float32": {},
    "bf16, recomputed": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "dropout, two micro-steps": {"lora_dropout": 0.2, "gradient_accumulation_steps": 2},
    "fp16": {"mixed_precision": "fp16"},
    "text encoders": {"train_text_encoder": True},
    "text encoders alone": {"train_text_encoder": True, "train_unet": False},
    "averaged": {"ema_decay": 0.9, "optimizer": "adamw8bit"},
}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_learn_what_plain_ones_do(train, two_sizes, tmp_path, case):
    """Also after a checkpoint, and with an epoch's last step, which has fewer pictures."""
    settings = {"train_data_dir": str(two_sizes), "adam_epsilon": 1e-4, "deterministic": True, **CASES[case]}
    plain = train(**settings, max_train_steps=6, cuda_graphs="off", output_dir=str(tmp_path / "plain"))
    train(**settings, max_train_steps=4, cuda_graphs="on", output_dir=str(tmp_path / "graphs"))
    graphs = train(**settings, max_train_steps=6, cuda_graphs="on", output_dir=str(tmp_path / "graphs"))
    said = [event["text"] for event in read_events(graphs / "events.jsonl", "message")]
    assert not [text for text in said if "going on without" in text]
    assert column(graphs, "loss") == pytest.approx(column(plain, "loss"), rel=1e-4)
    assert largest_difference(weights_of(graphs, 6), weights_of(plain, 6)) < 1e-5


def micro_step(parameter):
    """Losses with dropout, whose gradients are added to the parameter's."""

    def compute(batch):
        losses = (torch.dropout(parameter, 0.5, train=True) * batch["x"]).square()
        losses.sum().backward()
        return losses

    return compute


def batches(sizes):
    return [{"x": torch.full((size,), float(index + 1))} for index, size in enumerate(sizes)]


def losses_and_gradients(compute, parameter, sizes):
    """All losses, and the gradient after each call, which begins with the random state that its number gives."""
    parameter.grad, found = torch.zeros_like(parameter), []
    for number, batch in enumerate(batches(sizes)):
        torch.manual_seed(number)
        found += [compute(batch).detach().clone(), parameter.grad.clone()]
    return found


def test_recorded_micro_steps_add_the_gradients_that_plain_ones_do():
    """With dropout, several sizes and what was accumulated before; each size is recorded once."""
    parameter, said = torch.nn.Parameter(torch.tensor(3.0)), []
    recorder, sizes = OnTheCpu([parameter]), [2, 3, 2, 2, 3]
    step = RecordedMicroStep(micro_step(parameter), [parameter], said.append, recorder)
    plain = losses_and_gradients(micro_step(parameter), parameter, sizes)
    torch.testing.assert_close(losses_and_gradients(step, parameter, sizes), plain, rtol=0, atol=0)
    assert (recorder.captured, recorder.replayed, said) == (2, 2 + 5, [])  # a replay more for the check of each

    step.release()
    torch.testing.assert_close(losses_and_gradients(step, parameter, sizes), plain, rtol=0, atol=0)
    assert (recorder.captured, recorder.released) == (4, 1)


def test_of_many_sizes_the_least_recently_used_leaves(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    parameter = torch.nn.Parameter(torch.tensor(3.0))
    recorder, sizes = OnTheCpu([parameter]), [1, 2, 1, 3, 1, 2]
    step = RecordedMicroStep(micro_step(parameter), [parameter], print, recorder)
    plain = losses_and_gradients(micro_step(parameter), parameter, sizes)
    torch.testing.assert_close(losses_and_gradients(step, parameter, sizes), plain, rtol=0, atol=0)
    assert recorder.captured == 4 and [record.losses.numel() for record in step.records.values()] == [1, 2]


@pytest.mark.parametrize(
    ("fault", "skew", "why"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nmore"), 0.0, "operation not permitted when"),
        (torch.OutOfMemoryError("2 GiB are missing"), 0.0, "2 GiB are missing"),
        (None, 10.0, r"a replayed gradient of norm 24 differs from the recorded one by 10$"),
    ],
)
def test_what_cannot_be_recorded_is_computed_as_it_is_and_says_why_once(fault, skew, why):
    parameter, said = torch.nn.Parameter(torch.tensor(3.0)), []

    def compute(batch):
        losses = (parameter * batch["x"]).square()
        losses.sum().backward()
        return losses

    recorder = OnTheCpu([parameter], fault, skew)
    step, sizes = RecordedMicroStep(compute, [parameter], said.append, recorder), [4, 1, 4]
    plain = losses_and_gradients(compute, parameter, sizes)
    torch.testing.assert_close(losses_and_gradients(step, parameter, sizes), plain, rtol=0, atol=0)
    assert len(said) == 1 and re.match(f"going on without CUDA graphs: {why}", said[0]), said
    assert recorder.released == 1 and not step.records


def test_recordings_go_where_they_leave_no_room_for_what_is_not_recorded():
    """Gradients that were there before, and those of half a backward, are not counted twice."""
    parameter, said = torch.nn.Parameter(torch.tensor(3.0)), []
    plain, (given,), is_full = micro_step(parameter), batches([4]), False

    def compute(batch):
        losses = plain(batch)
        if is_full and step.records and batch is given:  # not what is recorded
            raise torch.OutOfMemoryError("2 GiB are missing")
        return losses

    def after_two(first, second):
        parameter.grad = torch.zeros_like(parameter)
        torch.manual_seed(0)
        return [first(given).detach().clone(), second(given).detach().clone(), parameter.grad.clone()]

    step = RecordedMicroStep(compute, [parameter], said.append, OnTheCpu([parameter]))
    expected = after_two(plain, plain)
    torch.testing.assert_close(after_two(step, step.beside), expected, rtol=0, atol=0)
    assert step.records and not said
    is_full = True
    torch.testing.assert_close(after_two(step, step.beside), expected, rtol=0, atol=0)
    assert not step.records and len(said) == 1 and "leave too little memory" in said[0]
    torch.testing.assert_close(after_two(step, step.beside), expected, rtol=0, atol=0)


def test_auto_takes_graphs_where_they_can_be_had_and_says_why_not(monkeypatch):
    def settled(device="cuda", sizes=3, **settings):
        said = []
        config = replace_flat(TrainConfig(output_dir="y", data=DataConfig(train_data_dir="x")), **settings)
        return settle_graphs(config, device, sizes, said.append).compute.cuda_graphs, said

    assert settled() == ("on", ["cuda_graphs auto: on"])
    assert settled("cpu") == ("off", [])
    assert settled("mps") == ("off", ["cuda_graphs auto: off, there are none on mps"])
    assert settled(sizes=33) == ("off", ["cuda_graphs auto: off, 33 sizes of micro-batches are too many to record"])
    assert settled(train_text_encoder=True) == settled()
    choice, (said,) = settled(train_text_encoder=True, gradient_checkpointing=True)
    assert choice == "off" and "train_text_encoder and gradient_checkpointing" in said
    choice, (said,) = settled(gradient_checkpointing=True, rank_dropout=0.1)
    assert choice == "off" and "gradient_checkpointing and dropout" in said
    choice, (said,) = settled(adapter="loha", module_dropout=0.1)
    assert choice == "off" and "module_dropout of a loha" in said
    assert settled(sizes=99, cuda_graphs="on") == ("on", []) and settled(cuda_graphs="off") == ("off", [])
    monkeypatch.setattr("torch.version.hip", "7.0")
    assert settled() == ("off", ["cuda_graphs auto: off, not tried on ROCm; ask for them with --cuda_graphs on"])


def test_the_flag_alone_is_on_and_a_yaml_may_say_true(tmp_path):
    needed, file = ["--train_data_dir", "x", "--output_dir", "y"], tmp_path / "a.yaml"
    for flags, choice in (([], "auto"), (["--cuda_graphs"], "on"), (["--no_cuda_graphs"], "off"),
                          (["--cuda_graphs", "auto"], "auto"), (["--cuda_graphs", "--seed", "3"], "on")):  # fmt: skip
        assert load_config(TrainConfig, [*needed, *flags]).compute.cuda_graphs == choice
    for text, choice in (("true", "on"), ("false", "off"), ("auto", "auto"), ("'off'", "off")):
        file.write_text(f"cuda_graphs: {text}")
        assert load_config(TrainConfig, [*needed, "--config", str(file)]).compute.cuda_graphs == choice
    with pytest.raises(SystemExit):
        load_config(TrainConfig, [*needed, "--cuda_graphs", "perhaps"])
    with pytest.raises(SystemExit):  # it lacks output_dir
        load_config(TrainConfig, [])


def test_where_graphs_cannot_be_had_one_is_told(train, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cuda_graphs does not go with train_text_encoder and gradient_"):
        train(cuda_graphs="on", train_text_encoder=True, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="cuda_graphs does not go with gradient_checkpointing and dropout"):
        train(cuda_graphs="on", gradient_checkpointing=True, rank_dropout=0.1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda_graphs is for CUDA GPUs, this process is on cpu"):
        train(cuda_graphs="on", output_dir=str(tmp_path / "run"))


def test_two_processes_that_record_learn_what_ddp_does(train_config, two_sizes, tmp_path):
    """Bit for bit, as two numbers have one sum; with two micro-steps, dropout, an average and text encoders."""
    common = {"train_data_dir": str(two_sizes), "gradient_accumulation_steps": 2, "lora_dropout": 0.1,
              "train_text_encoder": True, "ema_decay": 0.9}  # fmt: skip

    def run(name, steps, graphs):
        config = train_config(**common, max_train_steps=steps, cuda_graphs=graphs, output_dir=str(tmp_path / name))
        codes, printed = launch(config, tmp_path / "log", world_size=2, first=record_on_the_cpu)
        assert codes == [0, 0], printed
        return tmp_path / name

    ddp = run("ddp", 3, "off")
    run("recorded", 2, "on")
    recorded = run("recorded", 3, "on")
    assert column(recorded, "loss") == column(ddp, "loss")
    assert_equal_weights(weights_of(recorded, 3), weights_of(ddp, 3))
    said = [event["text"] for event in read_events(recorded / "events.jsonl", "message")]
    assert any(text.startswith("recorded ") for text in said) and not any("going on without" in text for text in said)
