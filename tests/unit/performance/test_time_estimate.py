"""Speed of a device's matrix products, by a clock that the test moves."""

from itertools import count

import pytest
import torch

from sdxl_lora.performance import time_estimate
from sdxl_lora.performance.time_estimate import SIZES, Work, products_per_second

CPU = torch.device("cpu")


def ticking(seconds):
    """A clock that is `seconds` later whenever it is read."""
    readings = count()
    return lambda: next(readings) * seconds


def test_a_rate_is_operations_over_seconds():
    assert products_per_second(CPU, torch.float32, ticking(0.06)) == pytest.approx(2 * SIZES[0] ** 3 / 0.06)


def test_larger_matrices_are_tried_until_one_takes_long_enough(monkeypatch):
    monkeypatch.setattr(time_estimate, "SIZES", (8, 16, 32))
    assert products_per_second(CPU, torch.float32, ticking(0.01)) == pytest.approx(2 * 32**3 / 0.01)


def test_a_device_without_room_for_larger_ones_is_measured_by_the_small(monkeypatch):
    def ones(size, *more, **settings):
        if size > 8:
            raise torch.OutOfMemoryError
        return torch.zeros(size, size)

    monkeypatch.setattr(time_estimate, "SIZES", (8, 16, 32))
    monkeypatch.setattr(torch, "ones", ones)
    assert products_per_second(CPU, torch.float32, ticking(0.01)) == pytest.approx(2 * 8**3 / 0.01)


def test_other_devices_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    device = torch.device("xpu", 0)
    assert time_estimate.seconds_of(lambda: waited.append("work"), device, ticking(0.5)) == 0.5
    assert waited == [device, "work", device]


def test_encoding_has_a_rate_of_its_own_and_nothing_is_no_part():
    work = Work(training=1e12, samples=5e11, encoding=1e11)
    assert work.seconds(1e11, 1e10) == {"training": 10, "samples": 5, "encoding": 10}
