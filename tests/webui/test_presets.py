"""Presets by subject and card, and what a training would take before it starts."""

import pytest

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import flat_values, replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError, DataError
from tests.helpers.configs import flat_train_config
from tests.helpers.french import french
from tests.helpers.marks import slow
from webui.figures.plan import plan_of, planned
from webui.pages.tab_train import plan_html, preset_values
from webui.settings.fields import config_of
from webui.settings.presets import CARDS, FOLDER, OF_NO_PRESET, SUBJECTS, card_for, preset, prompts_of

PLAIN = flat_train_config("run", train_data_dir="data")


def test_every_preset_of_examples_is_on_the_page():
    files = {path.stem for path in FOLDER.glob("*.yaml")} - {"demo"}
    assert files == {*SUBJECTS, *CARDS}


@pytest.mark.parametrize("subject", ["", *SUBJECTS])
@pytest.mark.parametrize("card", ["", *CARDS])
def test_each_subject_goes_with_each_card(subject, card):
    settings = preset(subject, card)
    config = replace_flat(PLAIN, **settings)
    shown = dict(zip(settings, preset_values(subject, card), strict=True))
    assert flat_values(config_of(TrainConfig, {**shown, "output_dir": "run", "train_data_dir": "data"})) == flat_values(
        config
    ), "a form shows what the preset says"
    if subject and card:
        of_subject = preset(subject, "")
        a_step = of_subject["train_batch_size"] * of_subject["gradient_accumulation_steps"]
        assert config.batch.train_batch_size * config.batch.gradient_accumulation_steps == a_step
    assert settings.keys() == preset("", "").keys(), "a choice leaves nothing of the one before"


@pytest.mark.parametrize("name", [*SUBJECTS, *CARDS])
def test_a_preset_alone_is_what_its_file_says(name):
    settings = preset(name, "") if name in SUBJECTS else preset("", name)
    said = load_config(TrainConfig, ["--config", str(FOLDER / f"{name}.yaml")])
    of_the_person = {key: value for key, value in flat_values(said).items() if key in OF_NO_PRESET}
    assert replace_flat(PLAIN, **settings, **of_the_person) == said


def test_a_card_gets_the_preset_that_fits_and_prompts_the_datasets_word():
    assert [card_for(gib) for gib in (4, 5.8, 7.8, 11.9, 15.7, 23.6, 80)] == [
        None, "vram_6gb", "vram_8gb", "vram_12gb", "vram_16gb", "vram_24gb", "vram_24gb",
    ]  # fmt: skip
    assert all(prompt.startswith("ohwx, ") for prompt in prompts_of("style", "ohwx"))


@pytest.mark.parametrize("make_plan", [planned, *slow(plan_of)])
def test_a_plan_counts_what_the_training_would_do(train_config, make_plan):
    plan = make_plan(train_config(max_train_steps=6, gradient_accumulation_steps=2, validation_prompt=("a cat",)))
    assert (plan.steps, plan.images_per_step, plan.images, plan.uses) == (6, 2, 4, 3.0)
    assert 0 < plan.gib < 2 and plan.drawings > 0 and all(seconds > 0 for seconds in plan.seconds.values())
    assert "6 steps of 2 images, each of the 4 images 3.0 times." in plan_html(plan, None)
    assert "Nothing is drawn" not in plan_html(plan, 8.0)
    assert "more than the card" in plan_html(plan, plan.gib / 2)
    assert "6 pas de 2 images" in french(plan_html, plan, None)


def test_a_plan_of_what_cannot_be_trained_says_why(train_config, tmp_path):
    with pytest.raises((ConfigError, DataError), match="nowhere"):
        planned(train_config(train_data_dir=str(tmp_path / "nowhere")))
