"""The step's numbers stay on the device until someone looks, and what is not finite changes no weight."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_sdxl_lora
from sdxl_lora.data.prefetch import ahead, meanwhile
from sdxl_lora.errors import NonFiniteError
from sdxl_lora.lora.state import lora_state
from sdxl_lora.run.events import read_events


class HostReads(TorchDispatchMode):
    """Counts the places where the host would wait for a device: reading a tensor's value."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.fixture
def watched_steps(monkeypatch):
    """How often the host read a value in each step, of trainings in this process."""
    counts, step = [], train_sdxl_lora.Training.step

    def counting(self, turns, micro_batches):
        with HostReads() as reads:
            step(self, turns, micro_batches)
        counts.append(reads.count)

    monkeypatch.setattr(train_sdxl_lora.Training, "step", counting)
    return counts


def steps_of(run):
    return list(read_events(run / "events.jsonl", "step"))


def test_a_step_reads_nothing_back_and_reports_means(train, watched_steps, tmp_path):
    settings = {"max_train_steps": 5, "gradient_accumulation_steps": 2}
    each = train(**settings, output_dir=str(tmp_path / "each"))
    third = train(**settings, output_dir=str(tmp_path / "third"), logging_steps=3)
    assert watched_steps == [0] * 10
    losses = [step["loss"] for step in steps_of(each)]
    assert [step["step"] for step in steps_of(third)] == [3, 5]
    expected = [sum(losses[:3]) / 3, sum(losses[3:]) / 2]
    assert [step["loss"] for step in steps_of(third)] == pytest.approx(expected)
    assert steps_of(third)[-1]["grad_norm"] == steps_of(each)[-1]["grad_norm"]


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_weights_stay_as_they_were_before_the_first_step_that_is_not_finite(train, monkeypatch, optimizer):
    """Found out two steps later with AdamW, which left out both; at once with one that sees nothing on the device."""
    seen, trainings, step = [], [], train_sdxl_lora.Training.step

    def remembering(self, turns, micro_batches):
        seen.append(lora_state(self.bare_unet))
        trainings.append(self)
        step(self, turns, micro_batches)

    monkeypatch.setattr(train_sdxl_lora.Training, "step", remembering)
    monkeypatch.setenv("TRAINER_FAULT", "nan@step=2")
    with pytest.raises(NonFiniteError, match=r"step 2: loss nan.*not changed") as raised:
        train(max_train_steps=6, logging_steps=4, optimizer=optimizer)
    assert len(seen) == (4 if optimizer == "adamw" else 2)
    now = lora_state(trainings[0].bare_unet)
    assert all(torch.equal(now[name], seen[1][name]) for name in now)
    assert any(not torch.equal(now[name], seen[0][name]) for name in now)
    names = {trainings[0].examples[turn.example].name for turn in trainings[0].batches.epoch(0)[1]}
    assert all(name in str(raised.value) for name in names)


def test_items_come_in_order_and_errors_where_they_arose():
    def items():
        yield from range(5)
        raise ValueError("the sixth")

    taken = []
    with pytest.raises(ValueError, match="the sixth"):
        for item in ahead(items(), 2):
            taken.append(item)
    assert taken == [0, 1, 2, 3, 4]
    assert list(ahead(iter(range(3)), 0)) == [0, 1, 2]


def test_what_is_made_meanwhile_is_there_when_it_is_asked_for_or_its_error_is():
    assert meanwhile(lambda: 7)() == 7
    later = meanwhile(lambda: [][0])
    for _ in range(2):
        with pytest.raises(IndexError):
            later()


def test_closing_ends_the_thread_of_an_endless_iterator():
    def endless():
        while True:
            yield threading.current_thread()

    items = ahead(endless(), 2)
    worker = next(items)
    assert worker is not threading.current_thread() and worker.is_alive()
    items.close()
    assert not worker.is_alive()


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu(train, monkeypatch):
    step = train_sdxl_lora.Training.step

    def strict(self, turns, micro_batches):
        torch.cuda.set_sync_debug_mode("error" if self.done_steps else "default")  # the first fills lazy buffers
        step(self, turns, micro_batches)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train_sdxl_lora.Training, "step", strict)
    train(max_train_steps=4, logging_steps=4)
