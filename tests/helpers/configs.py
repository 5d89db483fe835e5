"""Configs from settings by their flat names, as in flags and YAML files."""

from sdxl_lora.config.fields import from_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig


def flat_train_config(output_dir: str = "run", **settings) -> TrainConfig:
    return from_flat(TrainConfig, {"output_dir": output_dir, **settings})


def flat_preprocess_config(input_dir: str, output_dir: str, **settings) -> PreprocessConfig:
    return from_flat(PreprocessConfig, {"input_dir": input_dir, "output_dir": output_dir, **settings})
