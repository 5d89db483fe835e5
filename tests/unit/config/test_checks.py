"""Settings that cannot be are refused at once, all of them."""

import pytest

from sdxl_lora.config.sources import check_source
from sdxl_lora.errors import ConfigError
from tests.helpers.configs import flat_preprocess_config, flat_train_config


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        flat_train_config(output_dir="x", rank=-1, seed=-5, train_batch_size=0)
    assert all(name in str(error.value) for name in ("rank", "seed", "train_batch_size", "train_data_dir"))


@pytest.mark.parametrize("name", ["", "  ", '""', "a\0b"])
def test_an_output_dir_that_is_nothing_is_refused(name):
    with pytest.raises(ConfigError, match="is an invalid name"):
        flat_train_config(output_dir=name, train_data_dir="data")


@pytest.mark.parametrize("seed", [2**63, 99999999999999999999])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    for make in (
        lambda: flat_train_config(output_dir="runs/cat", train_data_dir="data", seed=seed),
        lambda: flat_preprocess_config(input_dir="raw", output_dir="data", seed=seed),
    ):
        with pytest.raises(ConfigError, match=r"below 2\^63"):
            make()
    assert flat_train_config(output_dir="runs/cat", train_data_dir="data", seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize("project", ["a/b c#d", "50%", "a:b", "why?", "a\\b", "x" * 129, " "])
def test_a_project_that_wandb_refuses_is_refused_at_once(project):
    for report_to in ("wandb", "all"):
        with pytest.raises(ConfigError, match="tracker_project_name is"):
            flat_train_config(
                output_dir="runs/cat", train_data_dir="data", report_to=report_to, tracker_project_name=project
            )
    flat_train_config(output_dir="runs/cat", train_data_dir="data", tracker_project_name=project)
    flat_train_config(
        output_dir="runs/cat", train_data_dir="data", report_to="wandb", tracker_project_name="my cats-1.0_b"
    )


def test_a_similarity_model_that_is_no_folder_is_named_as_such():
    with pytest.raises(ConfigError, match="similarity_model '/no/such/model': no such folder here"):
        check_source("/no/such/model", "similarity_model", "folder")
    check_source("facebook/dinov2-base", "similarity_model", "folder")
