"""Forms without a browser: from what is typed to a config, its folders, its file and its command line."""

import shlex
from functools import partial
from types import SimpleNamespace

import gradio as gr
import pytest
import yaml

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.sections.preprocess import CaptionerConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from tests.helpers.configs import flat_preprocess_config, flat_train_config
from webui.locale.i18n import ENGLISH
from webui.page import following
from webui.runs.launch import command_line, flags_of_config, read_config, write_config
from webui.settings.fields import (
    BASIC,
    config_of,
    entered_value,
    fields_of,
    groups_of,
    named_fields,
    number,
    numbers_in,
    typed_value,
)
from webui.settings.workspace import Workspace, inside, load_workspace
from webui.widgets.finder import facts
from webui.widgets.forms import Form, preprocess_config, train_config
from webui.widgets.widgets import form

CONFIGS = (PreprocessConfig, TrainConfig)


# --- what is typed ---


@pytest.mark.parametrize("config_class", CONFIGS)
def test_what_a_form_shows_of_a_value_is_read_back_as_that_value(config_class):
    changes = {
        "rank": 7, "lora_alpha": 0.3, "learning_rate": 1e-4, "adam_epsilon": 1e-8, "max_train_steps": 12,
        "validation_prompt": ("a cat", "a dog, with = signs"), "background": (1, 2, 3), "prediction_type": "epsilon",
        "prior_loss_weight": 1 / 3, "trigger_word": "sks", "train_data_dir": "d",
    }  # fmt: skip
    for name, field in fields_of(config_class).items():
        for value in {field.default, changes.get(name, field.default)}:
            if value is not None or field.optional:
                assert typed_value(field, entered_value(field, value)) == value, name


def test_several_captioners_are_chosen_from_one_list_and_shares_are_typed_with_blanks():
    with gr.Blocks():
        widgets = form(PreprocessConfig, {}, {}, "prepare")
    shown = Form(PreprocessConfig, gr.Dropdown(), widgets, lambda *_: None).shown
    config = flat_preprocess_config("a", "data", caption_model=("somebody/a tagger", "b"), tag_blacklist=("x y", "z"))
    values = dict(zip(widgets, shown(config), strict=True))
    assert values["caption_model"] == ["somebody/a tagger", "b"] and values["tag_blacklist"] == "x y\nz"
    assert config_of(PreprocessConfig, values) == config
    assert widgets["caption_model"].value == list(CaptionerConfig.caption_model)
    shares = fields_of(TrainConfig)["caption_shares"]
    assert typed_value(shares, "7, 2.5 0.5") == (7, 2.5, 0.5) and entered_value(shares, (7, 2.5)) == "7 2.5"
    with pytest.raises(ConfigError, match="caption_shares is 'x', it must be a number"):
        typed_value(shares, "x 1")


def test_names_of_images_are_taken_as_they_are_and_one_in_a_line():
    field, names = fields_of(PreprocessConfig)["leave_out"], (" a.jpg", "a\u2028b.jpg", "a\x85b.jpg", "b .jpg")
    assert typed_value(field, entered_value(field, names) + "\n \n") == names
    assert typed_value(field, None) == typed_value(field, "") == ()


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_has_a_help_and_a_section_with_a_heading(config_class):
    for field in fields_of(config_class).values():
        assert field.help and field.section, field.name
    assert set(BASIC[config_class]) | set(ENGLISH[config_class.__name__]) <= set(fields_of(config_class))


def test_bad_values_are_refused_as_on_the_command_line_and_all_at_once():
    entered = {"output_dir": "x", "train_data_dir": "d", "rank": "-4", "resolution": "1023", "learning_rate": "fast"}
    with pytest.raises(ConfigError) as caught:
        config_of(TrainConfig, entered)
    named = [named_fields(TrainConfig, problem) for problem in caught.value.problems]
    assert sorted(named) == [["learning_rate"], ["rank"], ["resolution"]]
    with pytest.raises(ConfigError, match="train_batch_size is 'atuo', it must be a whole number or auto"):
        config_of(TrainConfig, {"output_dir": "x", "train_data_dir": "d", "train_batch_size": "atuo"})
    eight = {"output_dir": "x", "train_data_dir": "d", "train_batch_size": "auto", "gradient_accumulation_steps": "8"}
    assert config_of(TrainConfig, eight).batch.train_batch_size == "auto"
    for name, value in (("rank", "-4"), ("resolution", "1023"), ("learning_rate", "fast"), ("snr_gamma", "nan")):
        with pytest.raises(SystemExit):
            load_config(TrainConfig, ["--output_dir=x", "--train_data_dir=d", f"--{name}={value}"])
        with pytest.raises(ConfigError, match=name):
            config_of(TrainConfig, {"output_dir": "x", "train_data_dir": "d", name: value})


@pytest.mark.parametrize("number", ["", "12.5", "1e400", "nan", "four", None])
def test_a_whole_number_that_is_none_is_refused_and_not_rounded(number):
    with pytest.raises(ConfigError, match="rank is"):
        config_of(TrainConfig, {"output_dir": "x", "train_data_dir": "d", "rank": number})


# --- names and places ---


@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "", "a\0b", ".hidden", "-x", "a" * 65, "a b", None, "ü"])
def test_a_name_that_leads_elsewhere_is_refused_and_named(tmp_path, name):
    places = Workspace(tmp_path)
    for project, run in (("cat", name), (name, "run")):
        with pytest.raises(ConfigError, match="is an invalid name"):
            train_config(places, project, {"output_dir": run, "train_data_dir": "d"})
        with pytest.raises(ConfigError, match="is an invalid name"):
            preprocess_config(places, project, {"output_dir": run, "input_dir": "d"})


def test_a_link_that_leads_out_of_the_projects_is_refused(tmp_path):
    (tmp_path / "projects").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "projects" / "cat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        inside(tmp_path / "projects", "cat", "runs", "x")


def test_a_training_never_takes_the_name_of_an_earlier_run(tmp_path):
    run = tmp_path / "cat" / "runs" / "one"
    run.mkdir(parents=True)
    (run / "events.jsonl").touch()
    entered = {"output_dir": "one", "train_data_dir": "d"}
    with pytest.raises(ConfigError, match="taken by an earlier run"):
        train_config(Workspace(tmp_path), "cat", entered)
    assert train_config(Workspace(tmp_path), "cat", {**entered, "output_dir": "two"}).output_dir == str(
        run.parent / "two"
    )
    assert following("one") == "one-2" and following("one-9") == "one-10"


def test_places_come_from_the_file_and_the_environment_wins(tmp_path):
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "base" / "model_index.json").touch()
    file = tmp_path / "ui.yaml"
    values = {"LORA_PROJECTS_DIR": "p", "MODELS_DIR": str(tmp_path / "models"), "DEFAULT_SDXL_MODEL_FOR_LORA": "base"}
    file.write_text(yaml.safe_dump(values))
    places = load_workspace(file, {"LORA_PROJECTS_DIR": str(tmp_path / "q"), "LORAS_DIR": str(tmp_path / "l")})
    assert (places.projects, places.loras) == (tmp_path / "q", tmp_path / "l")
    assert places.default_base == str(tmp_path / "models" / "base") and places.bases() == [places.default_base]
    file.write_text("LORAS_DIRR: x\n")
    with pytest.raises(ConfigError, match="unknown LORAS_DIRR: it may set"):
        load_workspace(file, {})
    file.write_text("- x\n")
    with pytest.raises(ConfigError, match="no lines of"):
        load_workspace(file, {})


def test_numbers_are_taken_with_a_comma_too_and_what_stays_in_doubt_is_refused():
    rate = fields_of(TrainConfig)["learning_rate"]
    entered = ("0,0001", "1,5", "1,5e-4", "-0,5", ",5", "1,0000", "1e-4")
    assert [number(rate, text) for text in entered] == [0.0001, 1.5, 1.5e-4, -0.5, 0.5, 1.0, 1e-4]
    for text in ("1,000", "12,345", "1,2,3", "1.000,5"):
        with pytest.raises(ConfigError, match="must be a number"):
            number(rate, text)
    for text in ("0.9 0.999", "0.9, 0.999", "0.9,0.999"):
        assert numbers_in(text) == ["0.9", "0.999"]
    assert numbers_in("0,9 0,999") == numbers_in("0,9, 0,999") == ["0,9", "0,999"] and numbers_in("1,2") == ["1", "2"]


def test_without_settings_the_page_has_its_own_folders_and_an_older_one_stays_in_use(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = load_workspace(None, {})
    assert (places.projects, places.loras) == (tmp_path / "LoRA_Projects_Internal", tmp_path / "models" / "loras")
    (tmp_path / "projects" / ".page").mkdir(parents=True)
    assert load_workspace(None, {}).projects == tmp_path / "projects"
    places.make_folders()
    assert places.loras.is_dir() and load_workspace(None, {}).projects == places.projects
    named = load_workspace(None, {"LORAS_DIR": str(tmp_path / "disk")})
    named.make_folders()
    assert not named.loras.exists(), "a disk that is not there today is not made up"


# --- what is found and shown of it, see finder.js ---


def test_the_script_knows_of_each_field_what_it_begins_with_its_section_and_its_condition():
    with gr.Blocks():
        widgets = form(TrainConfig, {}, {"output_dir": "", "loras_dir": "l"}, "train")
    known = facts(TrainConfig, widgets)
    assert list(known) == list(fields_of(TrainConfig)) == list(widgets)
    assert known["rank"] == {"default": 16, "section": 0, "when": []}
    assert known["loras_dir"]["default"] == "l"
    assert known["huber_c"]["when"] == [["loss_type", ["huber", "smooth_l1"]]]
    assert known["flow_shift"]["when"] == [["prediction_type", ["", "flow"]]]
    assert known["text_encoder_lr"]["when"] == [["train_text_encoder", []]]
    assert list(groups_of(TrainConfig))[known["huber_c"]["section"]] == fields_of(TrainConfig)["huber_c"].section


# --- the same as a file and as a command ---


def test_the_command_line_and_the_file_that_the_page_shows_ask_for_the_same_config(tmp_path):
    config = flat_train_config(
        output_dir="runs/it's a cat", train_data_dir="d", rank=8, center_crop=False, random_flip=True,
        validation_prompt=("a cat; rm -rf /", "$(touch x) `id`"), max_train_steps=5, resume_from_checkpoint=None,
        keep_tokens_separator="|||", optimizer_args=("betas=(0.9, 0.99)",), lora_alpha=1e-3,
    )  # fmt: skip
    assert load_config(TrainConfig, flags_of_config(config)) == config
    words = shlex.split(command_line(config))
    assert load_config(TrainConfig, words[words.index("train_sdxl_lora.py") + 1 :]) == config
    assert read_config(TrainConfig, write_config(config, tmp_path)) == config
    prepared = flat_preprocess_config(
        input_dir="a", output_dir="b", background=(0, 1, 2), caption_prefix="-x", strict=True
    )
    assert load_config(PreprocessConfig, shlex.split(command_line(prepared))[3:]) == prepared


def test_a_file_that_is_no_config_is_refused_with_line_and_nearest_name(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("output_dir: x\nrnak: 4\n")
    with pytest.raises(ConfigError, match=r"line 2:1: unknown key 'rnak', did you mean 'rank'"):
        read_config(TrainConfig, path)
    path.write_text("output_dir: x\ntrain_data_dir: d\nrank: four\n")
    with pytest.raises(ConfigError, match="rank"):
        read_config(TrainConfig, path)


# --- what is told at the press ---


def complaint(config_class: type, build, *expected: str, **entered: str) -> str:
    form = Form(config_class, None, {name: SimpleNamespace(elem_id=name) for name in entered}, build)
    return form.complaint("cat", *entered.values(), expected=expected)


def test_a_folder_that_is_not_there_is_told_at_the_press_and_not_when_its_turn_comes(tmp_path):
    places, there, gone = Workspace(tmp_path / "projects"), str(tmp_path), str(tmp_path / "none")
    prepare, train = partial(preprocess_config, places), partial(train_config, places)
    assert complaint(PreprocessConfig, prepare, output_dir="d", input_dir=there) == ""
    said = complaint(PreprocessConfig, prepare, output_dir="d", input_dir=gone)
    assert "is not a folder on this machine" in said and "#input_dir::after" in said
    assert '<li><button type="button" data-field="input_dir">' in said, "it leads to its field"
    assert complaint(TrainConfig, train, output_dir="r", train_data_dir=there) == ""
    assert "is not a folder" in complaint(TrainConfig, train, output_dir="r", train_data_dir=gone)
    assert complaint(TrainConfig, train, gone, output_dir="r", train_data_dir=gone) == "", "a job will have made it"
    bases = {"stabilityai/of-the-hub": False, "/none/sdxl.safetensors": True, "models/a/b.ckpt": True}
    for base, is_told in bases.items():
        said = complaint(TrainConfig, train, output_dir="r", train_data_dir=there, pretrained_model_name_or_path=base)
        assert ("no such base model here" in said) == is_told, base
