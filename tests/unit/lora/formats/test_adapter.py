"""A change of weights as the nearest LoRA of a rank."""

from types import SimpleNamespace

import pytest
import torch

from sdxl_lora.lora.formats.adapter import delta, in_float64, svd_lora, truncate


def test_the_randomised_svd_is_as_good_as_the_exact_one():

    generator = torch.Generator().manual_seed(0)
    change = torch.randn(700, 24, generator=generator) @ torch.randn(24, 600, generator=generator)
    change += 0.01 * torch.randn(700, 600, generator=generator)
    state = torch.get_rng_state()
    lora, kept = svd_lora(change, 0, 16)
    assert torch.equal(torch.get_rng_state(), state)
    values = torch.linalg.svdvals(change).square()
    assert kept == pytest.approx((values[:16].sum() / values.sum()).item(), abs=1e-4)
    assert (delta(lora) - change).square().sum().item() == pytest.approx(values[16:].sum().item(), rel=1e-3)


def test_a_change_of_low_rank_stays_so_whatever_rank_is_allowed():

    generator = torch.Generator().manual_seed(0)
    change = torch.randn(60, 3, generator=generator) @ torch.randn(3, 80, generator=generator)
    lora, kept = svd_lora(change, 0, 32)
    assert (lora.rank, kept) == (3, pytest.approx(1, abs=1e-6))
    assert truncate(lora, 0, 8)[0].rank == 3
    assert svd_lora(torch.zeros(4, 5), 0, 2)[0].rank == 1  # a LoRA of zeros


@pytest.mark.parametrize(("kind", "is_moved"), [("mps", True), ("xpu", True), ("cuda", False), ("cpu", False)])
def test_devices_without_float64_are_not_asked_for_it(kind, is_moved):
    values = torch.ones(2)
    there = SimpleNamespace(device=torch.device(kind), cpu=lambda: values, double=lambda: "there")
    doubled = in_float64(there)
    assert (doubled.dtype == torch.float64) if is_moved else doubled == "there"
