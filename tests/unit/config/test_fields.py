"""Settings as fields: each has its help, its range and its place."""

import pytest

from sdxl_lora.config.dataset_spec import parse_entries
from sdxl_lora.config.fields import flat_fields, flat_values, from_flat, replace_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from tests.helpers.configs import flat_preprocess_config, flat_train_config


@pytest.mark.parametrize("config_class", [TrainConfig, PreprocessConfig])
def test_every_field_has_help(config_class):
    for name, field in flat_fields(config_class).items():
        assert field.help.endswith((".", ")")), name


def test_every_setting_of_a_training_says_what_a_resumed_run_may_change():
    assert [name for name, field in flat_fields(TrainConfig).items() if field.resume_rule is None] == []


def test_flat_values_make_an_equal_config():
    config = flat_train_config(train_data_dir="d", rank=3, optimizer="lion", noise_offset=0.1)
    assert from_flat(TrainConfig, flat_values(config)) == config
    assert replace_flat(config, rank=4).adapter.rank == 4 and config.adapter.rank == 3
    with pytest.raises(TypeError, match="no setting rnak"):
        flat_train_config(rnak=1)


def test_a_range_holds_for_infinity_and_nan_too():
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match=r"noise_offset is .*, it must be 0 or more"):
            flat_train_config(train_data_dir="d", noise_offset=value)


@pytest.mark.parametrize("typed", ['"{}"', "'{}'", "  {} ", "{}\n", "~/data"])
def test_paths_are_read_as_they_are_pasted(typed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = str(tmp_path / "data")
    text = typed.format(path)
    config = flat_train_config(
        output_dir=text, train_data_dir=text, pretrained_model_name_or_path=text, cache_dir=text, init_lora=text,
        pretrained_vae_model_name_or_path=text, pretrained_config_name_or_path=text, loras_dir=text,
    )  # fmt: skip
    for name in ("output_dir", "train_data_dir", "pretrained_model_name_or_path", "cache_dir", "init_lora"):
        assert flat_values(config)[name] == path, name
    assert config.lora_name == "data" and config.cache_folder == tmp_path / "data"
    prepared = flat_preprocess_config(input_dir=text, output_dir=text, class_images=text)
    assert (prepared.input_dir, prepared.output_dir, prepared.images.class_images) == (path,) * 3
    [entry] = parse_entries([f"{{train_data_dir: {text.strip()}, repeats: 2}}"])
    assert entry.train_data_dir == path
    assert parse_entries([f"{text.strip()}"])[0].train_data_dir == path


def test_hub_ids_and_words_stay_as_they_are():
    config = flat_train_config(output_dir="runs/cat", dataset_name=" user/cats ", init_lora="owner/name")
    assert (config.output_dir, config.data.dataset_name) == ("runs/cat", "user/cats")
    assert config.adapter.init_lora == "owner/name" and config.checkpoint.resume_from_checkpoint == "latest"


@pytest.mark.parametrize("name", ["rank", "max_train_steps", "train_batch_size", "checkpointing_steps", "resolution"])
def test_a_whole_number_that_no_machine_counts_to_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is {2**66}, it must be below 2\\^63"):
        flat_train_config(output_dir="x", train_data_dir="d", **{name: 2**66})
    flat_train_config(output_dir="x", train_data_dir="d", max_train_steps=2**63 - 1)
