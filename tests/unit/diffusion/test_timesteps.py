"""Densities of timesteps: drawn in numbers, and against what they are by definition."""

import math

import pytest

from sdxl_lora.diffusion.noise import draw_timestep
from sdxl_lora.diffusion.timesteps import UNIFORM, TimestepDensity, bias_range
from sdxl_lora.errors import ConfigError
from sdxl_lora.rng import SampleKey
from tests.helpers.configs import flat_train_config

UNIFORM_DRAWS = [(i + 0.5) / 2000 for i in range(2000)]


def share_below(density, timestep, num_train_timesteps=1000):
    drawn = [density.timestep(u, num_train_timesteps) for u in UNIFORM_DRAWS]
    return sum(t < timestep for t in drawn) / len(drawn)


def test_uniform_is_uniform_over_its_range():
    assert share_below(UNIFORM, 250) == 0.25
    narrow = TimestepDensity(min_timestep=200, max_timestep=400)
    assert {narrow.timestep(u, 1000) for u in UNIFORM_DRAWS} == set(range(200, 400))
    assert share_below(narrow, 300) == 0.5


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (1.0, 0.5), (-1.0, 2.0)])
def test_logit_normal_is_the_sigmoid_of_a_normal_number(mean, std):
    density = TimestepDensity("logit_normal", logit_mean=mean, logit_std=std)
    for timestep in (100, 500, 900):
        logit = math.log(timestep / (1000 - timestep))
        expected = 0.5 * (1 + math.erf((logit - mean) / std / math.sqrt(2)))
        assert share_below(density, timestep) == pytest.approx(expected, abs=2e-3)
    assert density.timestep(0.0, 1000) == 0 and density.timestep(1 - 2**-53, 1000) <= 999


def test_beta_is_the_integral_of_its_density():
    density = TimestepDensity("beta", beta_alpha=2.0, beta_beta=1.0)  # density 2 x, so x^2 lies below x
    for timestep in (100, 500, 900):
        assert share_below(density, timestep) == pytest.approx((timestep / 1000) ** 2, abs=2e-3)
    assert density.timestep(0.0, 1000) == 0 and density.timestep(1 - 2**-53, 1000) == 999


@pytest.mark.parametrize(
    "strategy, begin, end, expected",
    [("earlier", 0, 1, 3 / 6 * 4 / 4), ("later", 0, 1, 1 / 6), ("range", 0.0, 0.25, 3 / 6)],
)
def test_a_bias_makes_its_quarter_three_times_as_dense(strategy, begin, end, expected):
    begin, end = bias_range(strategy, 0.25, begin, end)
    density = TimestepDensity("biased", bias_begin=begin, bias_end=end, bias_multiplier=3.0)
    assert share_below(density, 250) == pytest.approx(expected, abs=1e-3)  # 3 of 3 + 1 + 1 + 1 parts, or 1
    assert density.timestep(0.0, 1000) == 0 and density.timestep(1 - 2**-53, 1000) == 999


def test_draws_are_of_the_density_and_uniform_ones_are_as_they_always_were():
    samples = [SampleKey(example, epoch) for example in range(40) for epoch in range(50)]
    late = TimestepDensity("beta", beta_alpha=2.0)
    drawn = [draw_timestep(3, sample, 1000, late) for sample in samples]
    assert sum(t < 500 for t in drawn) / len(drawn) == pytest.approx(0.25, abs=0.03)
    uniform = [draw_timestep(3, sample, 1000) for sample in samples[:200]]
    same_by_place = TimestepDensity("uniform", max_timestep=1000)
    assert [draw_timestep(3, sample, 1000, same_by_place) for sample in samples[:200]] == uniform
    assert uniform[:4] == [draw_timestep(3, SampleKey(0, epoch), 1000) for epoch in range(4)]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep 500 must be below max_timestep 500"),
        ({"timestep_bias_strategy": "later"}, "needs a timestep_bias_multiplier other than 1"),
        ({"timestep_bias_multiplier": 2.0}, "needs a timestep_bias_strategy"),
        (
            {"timestep_bias_strategy": "earlier", "timestep_bias_multiplier": 2.0, "timestep_sampling": "beta"},
            "uniform",
        ),
        (
            {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 2.0, "timestep_bias_end": 0},
            "must include some of the timesteps",
        ),
        ({"logit_std": 0.0}, "logit_std is 0.0, it must be above 0"),
        ({"logit_mean": math.nan}, "logit_mean is nan"),
        ({"snr_gamma": 5.0, "debiased_estimation": True}, "cannot be used together"),
        ({"huber_c": 0.0}, "huber_c is 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        flat_train_config(output_dir="run", train_data_dir="data", **settings)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="uniform, logit_normal, beta or biased"):
        TimestepDensity("normal").place(0.5)
