"""Settings as fields: each has its help, its range and its place."""

import pytest

from sdxl_lora.config.dataset_spec import parse_entries
from sdxl_lora.config.fields import SET, applies_when, flat_fields, flat_values, from_flat, idle_settings, replace_flat
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


@pytest.mark.parametrize("config_class", [TrainConfig, PreprocessConfig])
def test_a_condition_names_settings_of_the_same_command_and_values_that_they_can_have(config_class):
    fields, required = flat_fields(config_class), {"output_dir": "x", "input_dir": "y", "train_data_dir": "d"}
    given = {name: value for name, value in required.items() if name in fields}
    with_conditions = [field for field in fields.values() if field.applies_when]
    assert len(with_conditions) >= 5
    for field in with_conditions:
        for name, wanted in field.applies_when.others:
            for value in wanted:
                others = {"best_by": {"similarity_model": "m", "validation_prompt": ("a cat",)}}.get(name, {})
                bias = {"timestep_bias_multiplier": 2.0} if name == "timestep_bias_strategy" else {}
                from_flat(config_class, {**given, **others, **bias, name: value})  # raises where it cannot be


def test_a_setting_that_means_nothing_beside_the_others_is_told_and_nothing_else_is():
    plain = {"train_data_dir": "d"}
    assert idle_settings(flat_train_config(**plain)) == []
    given = {**plain, "huber_c": 0.2, "prodigy_beta3": 0.9, "lr_power": 2.0, "early_stopping_min_delta": 0.1}
    assert idle_settings(flat_train_config(**given)) == [
        "lr_power has no effect: it is for lr_scheduler polynomial",
        "prodigy_beta3 has no effect: it is for optimizer prodigy",
        "huber_c has no effect: it is for loss_type huber or smooth_l1",
        "early_stopping_min_delta has no effect: it is for validation_split or best_by similarity",
    ]
    used = {"loss_type": "huber", "optimizer": "prodigy", "lr_scheduler": "polynomial", "validation_split": 0.5}
    assert idle_settings(flat_train_config(**given, **used)) == []
    assert idle_settings(flat_train_config(**plain, optimizer=" prodigy ", prodigy_decouple=False)) == []
    rule = applies_when(rank=SET, adapter=("lora", None))
    for rank, adapter, holds in ((0, "loha", False), (4, "loha", True), (0, "lora", True), (0, None, True)):
        assert rule.holds({"rank": rank, "adapter": adapter}) == holds


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
