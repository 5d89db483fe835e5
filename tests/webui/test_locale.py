"""The page's languages: nothing is without its translation."""

import ast
import json
import re

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from jinja2.ext import extract_from_ast

from preprocess.captions.caption_text import NO_CAPTION
from preprocess.captions.token_count import caption_problems
from preprocess.images.quality import duplicates, image_problems
from preprocess.sources.folders import leave_out_named
from sdxl_lora.config.fields import flat_fields, from_flat, idle_settings, range_text
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.folders.found import Found, Source
from sdxl_lora.images.decode import ImageError, decode_image
from tests.helpers.configs import flat_train_config
from tests.helpers.french import french
from tests.helpers.paths import ROOT
from tests.helpers.png import png_header
from webui.locale.i18n import LOCALES, dictionaries, in_page_words, key_of, label_of, language_of, say, say_problem
from webui.page import create_page
from webui.settings.fields import fields_of
from webui.settings.workspace import Workspace
from webui.widgets import html as show
from webui.widgets.scripts import script, texts_in
from webui.widgets.templates import ENVIRONMENT, STATES

PNG, KEPT = png_header(9, 9), "is for another crop, so it is kept but not used: paint it again"
CONFIGS = (PreprocessConfig, TrainConfig)
UI = ROOT / "webui"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return create_page(Workspace(tmp_path_factory.mktemp("projects")))


def components(page) -> list[dict]:
    return page.config["components"]


def used_texts() -> dict[str, str]:
    """The texts of every `T(...)` and `say(...)` in the page's modules, scripts and templates, with the file."""
    found = {text: path.name for path in UI.rglob("*.js") for text in texts_in(path.read_text(encoding="utf-8"))}
    for name in ENVIRONMENT.list_templates():
        source = (UI / "widgets" / "templates" / name).read_text(encoding="utf-8")
        found |= {
            texts[0]: name for _, _, texts in extract_from_ast(ENVIRONMENT.parse(source), ["say"], babel_style=False)
        }
    for path in UI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("T", "say"):
                text = node.args[0]
                if isinstance(text, ast.Constant):
                    found[text.value] = path.name
    return found


def used() -> set[str]:
    sections = {field.section for config_class in CONFIGS for field in fields_of(config_class).values()}
    return {*used_texts(), *STATES.values(), *show.KINDS.values(), *sections}


@pytest.mark.parametrize("language", LOCALES)
def test_no_text_is_without_its_translation_and_none_is_left_over(language):
    texts = LOCALES[language].texts
    assert sorted(used() - set(texts)) == []
    assert sorted(set(texts) - used()) == []


@pytest.mark.parametrize("language", LOCALES)
def test_a_translation_has_the_facts_of_its_text_and_no_other(language):
    content = json.loads((UI / "locale" / f"{language}.json").read_text(encoding="utf-8"))
    for english, translation in content["texts"].items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", translation)), english
    for english, translation in {**content["problems"], **content["requirements"]}.items():
        assert set(re.findall(r"\{\w+\}", translation)) <= set(re.findall(r"\{\w+\}", english)), english


@pytest.mark.parametrize("language", LOCALES)
@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_has_its_label_and_its_help(config_class, language):
    translated = LOCALES[language].fields[config_class.__name__]
    fields = fields_of(config_class)
    missing = [(name, what) for name in fields for what in ("label", "help") if not translated.get(name, {}).get(what)]
    assert missing == [], f"add them to webui/locale/{language}.json"
    assert sorted(set(translated) - set(fields)) == []


@pytest.mark.parametrize("language", LOCALES)
def test_equal_english_words_have_one_translation(language):
    locale = LOCALES[language]
    translations: dict[str, set[str]] = {english: {text} for english, text in locale.texts.items()}
    for config_class in CONFIGS:
        for name, field in fields_of(config_class).items():
            label, help_ = locale.field(config_class, name)
            translations.setdefault(label_of(config_class, name), set()).add(label)
            translations.setdefault(field.help, set()).add(help_)
    assert {english: texts for english, texts in translations.items() if len(texts) > 1} == {}


@pytest.mark.parametrize("language", LOCALES)
def test_every_range_of_a_number_is_told_in_every_language(language):
    for config_class in CONFIGS:
        for field in flat_fields(config_class).values():
            bounds = [rule for rule in field.rules if isinstance(rule, Gt | Ge | Lt | Le | MultipleOf)]
            if bounds:
                assert LOCALES[language].requirement(range_text(bounds)), range_text(bounds)


def test_a_problem_with_words_that_nobody_has_translated_stays_in_english():
    assert french(say_problem, "rank is 3, it must be prime") == "rank is 3, it must be prime"
    assert french(say_problem, "rank is 0, it must be above 0") == "rank vaut 0, il faut au-dessus de 0"


def test_nothing_that_stands_still_on_the_page_is_outside_the_dictionary(page):
    """Every label, help, placeholder and text of a button or heading is one of Gradio's keys, and French has it."""
    french = dictionaries()["fr"]
    for component in components(page):
        props = component["props"]
        texts = [props.get(name) for name in ("label", "info", "placeholder")]
        if component["type"] in ("button", "uploadbutton", "markdown"):
            texts.append(props.get("value"))
        for text in texts:
            if isinstance(text, dict):
                assert text["key"] in french, text
            elif isinstance(text, str) and "__i18n__" in text:
                assert json.loads(text.removeprefix("__i18n__"))["key"] in french, text
            elif hasattr(text, "key"):
                assert text.key in french, text
            else:
                own = component["type"] in ("state", "timer", "html", "browserstate")
                assert own or not text or text in ("Dropdown", "HTML", "Timer"), (component["type"], text, props)


def test_every_sentence_of_a_bad_setting_is_told_in_french():
    """Each is provoked, so that a change of its words is seen here."""
    bad = [
        (PreprocessConfig, {"bucket_step": 3}), (PreprocessConfig, {"resolution": 32}),
        (PreprocessConfig, {"max_aspect": 9}), (PreprocessConfig, {"background": (1, 2, 900)}),
        (PreprocessConfig, {"ocr": True, "caption_model": "none"}), (PreprocessConfig, {"caption_model": ()}),
        (PreprocessConfig, {"caption_model": ("a", "none")}), (PreprocessConfig, {"caption_join": "several"}),
        (PreprocessConfig, {"no_upscale": True, "enlarge_small": True}),
        (PreprocessConfig, {"no_upscale": True, "buckets": "off"}), (PreprocessConfig, {"crops_per_picture": 2}),
        (PreprocessConfig, {"output_dir": " "}), (TrainConfig, {"resolution": 1023}), (TrainConfig, {"rank": 0}),
        (TrainConfig, {"seed": -1}), (TrainConfig, {"lora_dropout": 1}), (TrainConfig, {"train_data_dir": None}),
        (TrainConfig, {"train_unet": False}),
        (TrainConfig, {"train_unet": False, "train_text_encoder": True, "block_ranks": ("up=2",)}),
        (TrainConfig, {"train_unet": False, "train_text_encoder": True, "stop_text_encoder_training": 0.5}),
        (TrainConfig, {"train_unet": False, "train_text_encoder": True, "text_encoder_lr": 0.0}),
        (TrainConfig, {"text_encoder_lr": 1.0}), (TrainConfig, {"snr_gamma": 5.0, "debiased_estimation": True}),
        (TrainConfig, {"min_timestep": 900, "max_timestep": 800}), (TrainConfig, {"logit_mean": float("nan")}),
        (TrainConfig, {"timestep_bias_multiplier": 2}), (TrainConfig, {"timestep_bias_strategy": "later"}),
        (TrainConfig, {"timestep_bias_strategy": "later", "timestep_sampling": "beta"}),
        (TrainConfig, {"timestep_bias_strategy": "later", "timestep_bias_portion": 3}),
        (TrainConfig, {"timestep_bias_strategy": "range", "timestep_bias_begin": 9, "timestep_bias_end": 3}),
        (TrainConfig, {"caption_separator": ""}), (TrainConfig, {"caption_shares": (1, 0)}),
        (TrainConfig, {"optimizer": "adamm"}),
        (TrainConfig, {"use_8bit_adam": True, "optimizer": "lion"}), (TrainConfig, {"optimizer_args": ("lr=1",)}),
        (TrainConfig, {"lora_plus_ratio": 2, "optimizer": "prodigy"}), (TrainConfig, {"optimizer_args": ("x",)}),
        (TrainConfig, {"ema_decay": 0.9, "optimizer": "schedule_free_adamw"}),
        (TrainConfig, {"block_lr_factors": ("down=2",), "optimizer": "prodigy"}),
        (TrainConfig, {"init_lora_weights": "x"}), (TrainConfig, {"init_lora_weights": "pissa", "use_dora": True}),
        (TrainConfig, {"init_lora": "x", "use_rslora": True}), (TrainConfig, {"adapter": "loha", "use_dora": True}),
        (TrainConfig, {"adapter": "loha", "lokr_factor": 8}),
        (TrainConfig, {"validation_without_trigger": True}), (TrainConfig, {"hub_model_id": "a/b"}),
        (TrainConfig, {"dataset_streaming": True, "validation_split": 0.5}),
        (TrainConfig, {"base_precision": "fp16", "mixed_precision": "bf16"}),
        (TrainConfig, {"gradient_checkpointing_blocks": ("mid",)}),
        (TrainConfig, {"base_precision": "nf4", "init_lora_weights": "pissa"}),
        (TrainConfig, {"train_batch_size": "atuo"}), (TrainConfig, {"train_batch_size": "auto"}),
        (TrainConfig, {"train_batch_size": "auto", "gradient_accumulation_steps": 2, "dataset_streaming": True}),
        (TrainConfig, {"memory_budget": "much"}), (TrainConfig, {"memory_budget": "8GB", "init_lora_weights": "pissa"}),
        (TrainConfig, {"seed": 2**63}), (PreprocessConfig, {"seed": 2**64}),
        (TrainConfig, {"report_to": "wandb", "tracker_project_name": "a/b"}), (TrainConfig, {"learning_rate": None}),
        (TrainConfig, {"optimizer": "adafactor", "optimizer_args": ("relative_step=True",)}),
        (TrainConfig, {"optimizer": "torch.optim.Adam", "learning_rate": None, "lr_scheduler": "cosine"}),
        (TrainConfig, {"early_stopping_patience": 2}), (TrainConfig, {"validation_guidance_rescale": 3.0}),
    ]  # fmt: skip
    for config_class, changes in bad:
        required = {"output_dir": "x", **({"input_dir": "y"} if config_class is PreprocessConfig else {})}
        required |= {"train_data_dir": "d"} if config_class is TrainConfig else {}
        with pytest.raises(ConfigError) as caught:
            from_flat(config_class, {**required, **changes})
        for problem in caught.value.problems:
            assert french(say_problem, problem) != problem, problem
            assert say_problem(problem) == problem


def test_the_language_is_the_first_of_ours_that_the_browser_asks_for():
    asked = {
        "fr-CH, fr;q=0.9, en;q=0.8, de;q=0.7, *;q=0.5": "fr", "en-US,en;q=0.5": "en", "de,en;q=0.3,fr;q=0.8": "fr",
        "": "en", "de": "en", "fr;q=x,en": "en",
    }  # fmt: skip
    assert {accept: language_of(accept) for accept in asked} == asked
    assert french(say, "step {step}", step=3) == "pas 3" and key_of("a {b|c}") == "a (b|c)"


def test_what_a_program_says_of_flags_is_told_with_the_names_of_the_page():
    said = "error: 40x40 is too small: pass --enlarge_small, or --no_such_flag"
    assert in_page_words(PreprocessConfig, "or --no_upscale") == "or “Do not enlarge”"
    assert in_page_words(PreprocessConfig, said) == "40x40 is too small: pass “Enlarge small images”, or --no_such_flag"
    assert in_page_words(TrainConfig, "rank is -1, it must be above 0") == "Rank: is -1, it must be above 0"
    assert french(in_page_words, TrainConfig, "rank is -1, it must be above 0").startswith("Rang: vaut -1")
    assert in_page_words(TrainConfig, "rank") == "rank" and in_page_words(TrainConfig, "") == ""


def test_what_is_said_of_images_and_masks_is_told_in_french_and_a_reason_in_it_too():
    """Each from where it is said, so that a change of its words is seen here."""
    config = flat_train_config(output_dir="x", train_data_dir="d", logit_mean=1.0, keep_tokens=2, validation_epochs=7)
    found = Found(UI)
    found.sources = [Source("a.png", UI / "a.png")]
    leave_out_named(found, ["gone.png"])
    said = [*idle_settings(config), *found.warnings["gone.png"]]
    said += [
        *image_problems({"sharpness": 0.1, "contrast": 3.0}, 0.9),
        *caption_problems("x " * 200, "sks", str.split)[1],
    ]
    said += [*caption_problems(" ", "", str.split)[1], NO_CAPTION, *duplicates("abc", "112", ["0" * 16] * 3).values()]
    said += [f"its mask painted by hand, images/a.png, {why}" for why in ("no longer exists", KEPT)]
    for data in (b"", b"words", b"GIF89a", PNG[:-30], PNG[:20] + b"x" * 40, png_header(2000, 2000), b"BM" + bytes(40)):
        with pytest.raises(ImageError) as caught:
            decode_image(data, "mask.png", 1.0)
        said.append(caught.value.reason)
        mask = french(say_problem, f"the mask cannot be read: {caught.value.reason}")
        assert mask == f"le masque est illisible : {french(say_problem, caught.value.reason)}"
    assert [sentence for sentence in said if french(say_problem, sentence) == sentence] == [] and len(said) > 18
    assert all(" or " not in french(say_problem, sentence) for sentence in said)


def test_a_script_says_its_texts_in_every_language_and_knows_what_the_page_knows(tmp_path):
    (tmp_path / "a.js").write_text('const say = SAY; const CARD = 1; tell(say("Close"), MANY, CARDS);')
    told = script(tmp_path / "a.js", CARDS=12, MANY=["a"])
    assert told.endswith('const CARD = 1; tell(say("Close"), ["a"], 12);') and '{"fr": {"Close": "Fermer"}}' in told
    assert texts_in('say("a {b}", { b }) + say(\n  "c") + says("d") + say(e)') == ["a {b}", "c"]
