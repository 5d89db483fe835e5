"""The step's numbers stay on the device until someone looks, and what is not finite changes no weight."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdxl_lora.data.prefetch import prefetch, run_in_background
from sdxl_lora.errors import ConfigError, NonFiniteError
from sdxl_lora.lora.state import lora_state
from sdxl_lora.training.metrics import means_by_timestep, sums_by_timestep
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.configs import flat_train_config
from tests.helpers.runs import steps_of


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
    counts, do = [], TrainStep.__call__

    def counting(self, *of_step):
        with HostReads() as reads:
            do(self, *of_step)
        counts.append(reads.count)

    monkeypatch.setattr(TrainStep, "__call__", counting)
    return counts


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
    seen, steps, do = [], [], TrainStep.__call__

    def remembering(self, batch, step, learning_rate):
        seen.append(lora_state(self.model.unet))
        steps.append((self, batch))
        do(self, batch, step, learning_rate)

    monkeypatch.setattr(TrainStep, "__call__", remembering)
    monkeypatch.setenv("TRAINER_FAULT", "nan@step=2")
    with pytest.raises(NonFiniteError, match=r"step 2: loss nan.*not changed") as raised:
        train(max_train_steps=6, logging_steps=4, optimizer=optimizer)
    assert len(seen) == (4 if optimizer == "adamw" else 2)
    now = lora_state(steps[0][0].model.unet)
    assert all(torch.equal(now[name], seen[1][name]) for name in now)
    assert any(not torch.equal(now[name], seen[0][name]) for name in now)
    names = steps[1][1].names
    assert names and all(name in str(raised.value) for name in names)


def test_items_come_in_order_and_errors_where_they_arose():
    def items():
        yield from range(5)
        raise ValueError("the sixth")

    taken = []
    with pytest.raises(ValueError, match="the sixth"):
        for item in prefetch(items(), 2):
            taken.append(item)
    assert taken == [0, 1, 2, 3, 4]
    assert list(prefetch(iter(range(3)), 0)) == [0, 1, 2]


def test_what_is_made_meanwhile_is_there_when_it_is_asked_for_or_its_error_is():
    assert run_in_background(lambda: 7)() == 7
    later = run_in_background(lambda: [][0])
    for _ in range(2):
        with pytest.raises(IndexError):
            later()


def test_closing_ends_the_thread_of_an_endless_iterator():
    def endless():
        while True:
            yield threading.current_thread()

    items = prefetch(endless(), 2)
    worker = next(items)
    assert worker is not threading.current_thread() and worker.is_alive()
    items.close()
    assert not worker.is_alive()


def test_losses_are_averaged_within_equal_ranges_of_timesteps():
    losses, timesteps = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0, 249, 250, 999])
    sums = sums_by_timestep(losses, timesteps, 1000, 4)
    assert sums.tolist() == [[4, 5, 0, 7], [2, 1, 0, 1]]
    expected = {"loss_timesteps_0_249": 2, "loss_timesteps_250_499": 5, "loss_timesteps_750_999": 7}
    assert means_by_timestep(sums, 1000) == expected
    assert means_by_timestep(sums_by_timestep(losses, timesteps, 1000, 0), 1000) == {}


@pytest.mark.parametrize("bins, num_train_timesteps", [(3, 1000), (7, 1000), (1000, 1000), (4, 10)])
def test_the_names_say_which_timesteps_are_in(bins, num_train_timesteps):
    timesteps = torch.arange(num_train_timesteps)
    sums = sums_by_timestep(timesteps.float(), timesteps, num_train_timesteps, bins)
    for name, mean in means_by_timestep(sums, num_train_timesteps).items():
        first, last = (int(part) for part in name.split("_")[2:])
        assert mean == pytest.approx((first + last) / 2)


def test_a_negative_number_of_ranges_is_refused():
    with pytest.raises(ConfigError, match="loss_bins is -1, it must be 0 or more"):
        flat_train_config(output_dir="run", train_data_dir="data", loss_bins=-1)


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu(train, monkeypatch):
    do, watched = TrainStep.__call__, []

    def strict(self, batch, step, learning_rate):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first fills lazy buffers
        watched.append(torch.cuda.get_sync_debug_mode())
        do(self, batch, step, learning_rate)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainStep, "__call__", strict)
    train(max_train_steps=4, logging_steps=4, cuda_graphs="off")
    assert watched == [0, 2, 2, 2], "0 is default, 2 is error"
