"""Paths as people paste them, on the page and in its settings file."""

from pathlib import Path

import pytest
import yaml

from sdxl_lora.config.fields import flat_fields
from sdxl_lora.config.paths import pasted_path
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from webui.settings.fields import config_of
from webui.settings.workspace import Workspace, load_workspace
from webui.widgets.forms import preprocess_config, train_config


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my pictures é#1").mkdir()
    return tmp_path


def ways_to_paste(path: Path) -> list[str]:
    url = path.as_uri()
    return [
        str(path), f"  {path}\t\n", f'"{path}"', f"'{path}'", f' "{path}" ', f"\u201c{path}\u201d", f"\u202a{path}",
        f"\"'{path}'\"", url, f"file://{path}", f"file:{path}", f'"{url}"', url.replace("file://", "file://localhost"),
        url.replace("file:", "FILE:"), "~/my pictures é#1", '"~/my pictures é#1"', "\ufeff~/my pictures é#1",
    ]  # fmt: skip


def test_however_it_is_pasted_it_is_the_folder_that_was_meant(home):
    folder = home / "my pictures é#1"
    assert {pasted_path(text) for text in ways_to_paste(folder)} == {str(folder)}


@pytest.mark.parametrize(
    "text",
    [
        "stabilityai/stable-diffusion-xl-base-1.0", "https://example.com/a%20b", "a ~ b", "it's", "'", '"', "", "100%",
        "dog's \"best\"", "~nobody-of-this-name/x", "file://server/share", "none", "C:\\pictures", "a/b.safetensors",
    ],
)  # fmt: skip
def test_what_is_no_pasted_path_stays_as_it_is(text):
    assert pasted_path(text) == text


def test_the_pages_forms_take_every_path_as_it_is_pasted(home):
    folder = home / "my pictures é#1"
    for text in ways_to_paste(folder):
        assert preprocess_config(Workspace(home), "p", {"input_dir": text, "output_dir": "d"}).input_dir == str(folder)
        entered = {"output_dir": "r", "train_data_dir": text, "pretrained_model_name_or_path": text, "loras_dir": text}
        config = train_config(Workspace(home), "p", entered)
        assert {config.data.train_data_dir, config.model.pretrained_model_name_or_path, config.output.loras_dir} == {
            str(folder)
        }
    kept = config_of(PreprocessConfig, {"input_dir": "x", "output_dir": "d", "trigger_word": '"sks"'})
    assert kept.trigger_word == '"sks"', "words are no paths"


def test_every_field_that_names_a_file_or_folder_is_known_as_one():
    for config_class in (PreprocessConfig, TrainConfig):
        for name, field in flat_fields(config_class).items():
            names_one = name.endswith(("_dir", "_file", "_path", "_images")) and "num_" not in name
            assert field.is_path or not names_one, name


def test_the_settings_file_takes_paths_as_they_are_pasted(home):
    folder = home / "my pictures é#1"
    (folder / "base").mkdir()
    for text in ways_to_paste(folder):
        values = {
            "LORA_PROJECTS_DIR": text,
            "LORAS_DIR": text,
            "MODELS_DIR": text,
            "DEFAULT_SDXL_MODEL_FOR_LORA": "base",
        }
        (home / "ui.yaml").write_text(yaml.safe_dump(values))
        places = load_workspace(home / "ui.yaml", {})
        assert (places.projects, places.loras, places.models) == (folder, folder, folder)
        assert places.default_base == str(folder / "base")
        assert load_workspace(home / "ui.yaml", {"LORAS_DIR": "~/x"}).loras == home / "x"
