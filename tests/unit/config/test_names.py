"""LoRA files that are named after their folder."""

import pytest

from sdxl_lora.config.names import check_name, name_from
from tests.helpers.configs import flat_train_config


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("cat", "cat"),
        ("a.b_c-1", "a.b_c-1"),
        ("my cat", "my-cat"),
        ("Grüße aus Köln", "Grusse-aus-Koln"),
        ("  .hidden ", "hidden"),
        ("猫", "lora"),
        ("", "lora"),
        ("x" * 250, "x" * 64),
        ("x" * 63 + " y", "x" * 63),
        ("con", "lora-con"),
        ("nul.2", "lora-nul.2"),
        ("pytorch_lora_weights", "lora-pytorch_lora_weights"),
    ],
)
def test_the_nearest_name_that_can_be_a_files_everywhere(folder, name):
    assert name_from(folder) == name
    check_name(name)


def test_another_name_than_the_folders_is_said(tmp_path):
    config = flat_train_config(str(tmp_path / "my cat"), train_data_dir="data")
    assert config.lora_name == "my-cat"
    assert config.notes_on_name()[0].startswith(
        "the LoRA files are called my-cat, since 'my cat' cannot be a file name"
    )
    assert flat_train_config(str(tmp_path / "cat"), train_data_dir="data").notes_on_name() == []
    named = flat_train_config(str(tmp_path / "my cat"), train_data_dir="data", output_name="tom")
    assert (named.lora_name, named.notes_on_name()) == ("tom", [])
