"""Choice of the LoRA to hand out, draw and copy, while its run goes on and other runs have the same name."""

from pathlib import Path

import pytest

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.sections.preprocess import CaptionerConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from webui.pages.tab_results import stage_choices
from webui.runs.loras import NEWEST, copy_lora_to, stage_of
from webui.settings.workspace import Workspace
from webui.widgets.forms import Form, preprocess_config, train_config


@pytest.fixture
def loras(tmp_path) -> Path:
    (tmp_path / "loras").mkdir()
    return tmp_path / "loras"


def saved(projects: Path, name: str, *stages: str) -> Path:
    """A run that has saved these: checkpoint-<step>, or "" for the end."""
    run = projects / Path(name).parts[0] / "runs" / Path(name).parts[1]
    for stage in stages:
        (run / stage).mkdir(parents=True, exist_ok=True)
        for file in (f"{run.name}.safetensors", "pytorch_lora_weights.safetensors"):
            (run / stage / file).write_text(f"{name} {stage or 'end'}")
    return run


def test_what_is_chosen_as_the_newest_stays_the_newest_while_the_run_goes_on(tmp_path):
    run = saved(tmp_path, "cat/one", "checkpoint-100")
    assert stage_choices(run) == [("the newest: step 100", NEWEST)]
    saved(tmp_path, "cat/one", "checkpoint-200")
    assert stage_choices(run) == [("the newest: step 200", NEWEST), ("step 100", "checkpoint-100")]
    assert stage_of(run, NEWEST) == stage_of(run, None) == "checkpoint-200"
    assert stage_of(run, "checkpoint-100") == "checkpoint-100"
    saved(tmp_path, "cat/one", "")
    assert stage_choices(run)[0] == ("the end", NEWEST) and stage_of(run, NEWEST) == "final"
    with pytest.raises(ConfigError, match="checkpoint-50 of one is no longer there"):
        stage_of(run, "checkpoint-50")
    assert stage_choices(None) == [] and stage_choices(tmp_path / "none") == []


def test_a_checkpoint_never_takes_the_place_of_the_finished_lora(tmp_path, loras):
    run = saved(tmp_path, "cat/one", "checkpoint-100", "checkpoint-200")
    assert copy_lora_to(loras, run, stage_of(run, NEWEST)).read_text() == "cat/one checkpoint-200"
    saved(tmp_path, "cat/one", "")
    assert copy_lora_to(loras, run, stage_of(run, NEWEST)) == loras / "one.safetensors"
    assert (loras / "one.safetensors").read_text() == "cat/one end", "the newer of the same run takes its place"
    assert copy_lora_to(loras, run, "checkpoint-100") == loras / "one-100.safetensors"
    assert (loras / "one.safetensors").read_text() == "cat/one end"


def test_two_projects_do_not_overwrite_each_others_lora(tmp_path, loras):
    first, second, third = (saved(tmp_path, f"{project}/run-1", "") for project in ("cat", "dog", "a"))
    assert copy_lora_to(loras, first, "final") == loras / "run-1.safetensors"
    assert copy_lora_to(loras, second, "final") == loras / "dog-run-1.safetensors"
    assert copy_lora_to(loras, first, "final") == loras / "run-1.safetensors"
    (loras / "a-run-1.safetensors").write_text("of someone else")
    with pytest.raises(ConfigError, match=r"run-1\.safetensors and a-run-1\.safetensors in .* belong to another run"):
        copy_lora_to(loras, third, "final")
    assert [(loras / f"{name}.safetensors").read_text() for name in ("run-1", "dog-run-1", "a-run-1")] == [
        "cat/run-1 end", "dog/run-1 end", "of someone else",
    ]  # fmt: skip


def test_a_training_that_copies_its_lora_has_a_name_that_no_other_has(tmp_path, loras):
    places = Workspace(tmp_path)
    entered = {"train_data_dir": "d", "loras_dir": str(loras)}
    names = {train_config(places, p, {**entered, "output_dir": "run-1"}).lora_name for p in ("cat", "dog", "x" * 64)}
    assert names == {"cat-run-1", "dog-run-1", "x" * 58 + "-run-1"}
    assert train_config(places, "cat", {"train_data_dir": "d", "output_dir": "run-1"}).lora_name == "cat-run-1"
    assert train_config(places, "cat", {**entered, "output_dir": "mine"}).lora_name == "mine"
    (loras / "mine.safetensors").write_text("of another run")
    with pytest.raises(ConfigError, match=r"output_name: mine\.safetensors of another run is already in"):
        train_config(places, "dog", {**entered, "output_dir": "mine"})
    given = train_config(places, "dog", {**entered, "output_dir": "mine", "output_name": "better"})
    assert given.lora_name == "better"


def shown(config_class: type, config, *names: str) -> dict:
    form = Form(config_class, None, dict.fromkeys(names), None)
    return dict(zip(names, form.shown(config), strict=True))


def test_a_name_that_the_page_gave_is_not_the_next_runs(tmp_path, loras):
    entered = {"train_data_dir": "d", "loras_dir": str(loras), "output_dir": "run-1"}
    config = train_config(Workspace(tmp_path), "cat", entered)
    assert shown(TrainConfig, config, "output_name", "output_dir") == {"output_name": "", "output_dir": "run-1"}
    named = train_config(Workspace(tmp_path), "cat", {**entered, "output_name": "better"})
    assert shown(TrainConfig, named, "output_name")["output_name"] == "better"


def test_auto_caption_ticked_again_has_a_captioner(tmp_path):
    places, entered = Workspace(tmp_path), {"input_dir": "raw", "output_dir": "d", "auto_caption": False}
    config = preprocess_config(places, "cat", entered)
    assert config.captioner.models == ()
    again = shown(PreprocessConfig, config, "input_dir", "output_dir", "caption_model", "auto_caption")
    assert again["auto_caption"] is False
    assert preprocess_config(places, "cat", {**again}).captioner.models == ()
    ticked = preprocess_config(places, "cat", {**again, "auto_caption": True})
    assert ticked.captioner.caption_model == CaptionerConfig.caption_model
