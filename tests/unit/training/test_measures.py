"""Losses by timestep, by hand."""

import pytest
import torch
from sdxl_lora.training.measures import means_by_timestep, sums_by_timestep

from sdxl_lora.errors import ConfigError
from tests.helpers.configs import flat_train_config


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
