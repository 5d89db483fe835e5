"""The web page without a browser: forms, texts, places, plots, and that it starts fast and without torch."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sdxl_lora.config.cli import load_config, to_yaml
from sdxl_lora.config.fields import flat_fields, from_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import EventLog
from tests.helpers.configs import flat_preprocess_config, flat_train_config
from tests.helpers.paths import ROOT
from webui import html as show
from webui.fields import config_of, entered_value, fields_of, problems_by_field, typed_value
from webui.french import PROBLEMS, TEXTS
from webui.french_fields import FIELDS
from webui.i18n import dictionaries, french_of, key_of, language_of, say, say_problem
from webui.labels import BASIC, LABELS, label_of
from webui.page import create_page, create_tab, following
from webui.runs.launch import command_line, flags_of_config, read_config, write_config
from webui.runs.listing import RunState
from webui.runs.run_history import History, smoothed
from webui.widgets.charts import Line, chart, nice_ticks, thinned
from webui.widgets.forms import css_text, preprocess_config, train_config
from webui.workspace import Workspace, inside, load_workspace

CONFIGS = (PreprocessConfig, TrainConfig)
UI = ROOT / "webui"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return create_page(Workspace(tmp_path_factory.mktemp("projects")))


def components(page) -> list[dict]:
    return page.config["components"]


# --- it starts fast ---


def test_the_page_imports_no_torch_and_is_up_in_under_five_seconds(tmp_path):
    """Of the processor's time: what else the machine is doing is not the page's."""
    code = (
        "import sys, time\n"
        "from webui.__main__ import serve\n"
        "from webui.workspace import Workspace\n"
        "from webui.server.address import bound\n"
        "import uvicorn, pathlib\n"
        "uvicorn.Server.run = lambda server, sockets: None\n"
        "serve(Workspace(pathlib.Path(sys.argv[1])), bound('127.0.0.1', 0), '127.0.0.1', None, '')\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'datasets', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)), time.process_time())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    heavy, seconds = re.fullmatch(r"\[(.*)\] ([\d.]+)", done.stdout.splitlines()[-1]).groups()
    assert heavy == ""
    assert float(seconds) < 5, done.stderr


# --- every field has a widget ---


def test_every_field_has_a_widget(page):
    ids = {component["props"].get("elem_id") for component in components(page)}
    for config_class, prefix in ((PreprocessConfig, "prepare"), (TrainConfig, "train")):
        missing = [name for name in flat_fields(config_class) if f"{prefix}-{name}" not in ids]
        assert missing == []


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


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_has_a_help_and_a_section_with_a_heading(config_class):
    for field in fields_of(config_class).values():
        assert field.help and field.section, field.name
    assert set(BASIC[config_class]) | set(LABELS[config_class]) <= set(fields_of(config_class))


def test_bad_values_are_refused_as_on_the_command_line_and_all_at_once():
    entered = {"output_dir": "x", "train_data_dir": "d", "rank": "-4", "resolution": "1023", "learning_rate": "fast"}
    with pytest.raises(ConfigError) as caught:
        config_of(TrainConfig, entered)
    by_field, others = problems_by_field(TrainConfig, caught.value.problems)
    assert set(by_field) == {"rank", "resolution", "learning_rate"} and others == []
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
    with pytest.raises(ConfigError, match="num_train_epochs is"):
        config_of(TrainConfig, {"output_dir": "x", "train_data_dir": "d", "num_train_epochs": number})


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
    with pytest.raises(ConfigError, match="unknown LORAS_DIRR; known are"):
        load_workspace(file, {})
    file.write_text("- x\n")
    with pytest.raises(ConfigError, match="no lines of"):
        load_workspace(file, {})


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


# --- English and French ---


def used_texts() -> dict[str, str]:
    """The texts of every `T(...)` and `say(language, ...)` in the page's modules, with the module."""
    found = {}
    for path in UI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("T", "say"):
                text = node.args[node.func.id == "say"]
                if isinstance(text, ast.Constant):
                    found[text.value] = path.name
    return found


def test_no_text_is_without_its_french_and_none_is_left_over():
    used = {*used_texts(), *show.STATES.values(), *show.KINDS.values()}
    assert sorted(used - set(TEXTS)) == []
    assert sorted(set(TEXTS) - used) == []
    for english, french in TEXTS.items():
        assert re.findall(r"\{\w+\}", english) == re.findall(r"\{\w+\}", french), english


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_is_told_of_in_french(config_class):
    french = FIELDS[config_class.__name__]
    fields = fields_of(config_class)
    assert sorted(set(fields) - set(french)) == []
    assert sorted(set(french) - set(fields)) == []
    assert all(label and help_ for label, help_ in french.values())


def test_equal_english_words_have_one_translation():
    translations: dict[str, set[str]] = {english: {french} for english, french in TEXTS.items()}
    for config_class in CONFIGS:
        for name, field in fields_of(config_class).items():
            label, help_ = french_of(config_class, name)
            translations.setdefault(label_of(config_class, name), set()).add(label)
            translations.setdefault(field.help, set()).add(help_)
    assert {english: french for english, french in translations.items() if len(french) > 1} == {}


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
        (PreprocessConfig, {"ocr": True, "caption_model": "none"}),
        (PreprocessConfig, {"no_upscale": True, "enlarge_small": True}),
        (PreprocessConfig, {"no_upscale": True, "buckets": "off"}), (PreprocessConfig, {"crops_per_picture": 2}),
        (PreprocessConfig, {"output_dir": " "}), (TrainConfig, {"resolution": 1023}), (TrainConfig, {"rank": 0}),
        (TrainConfig, {"seed": -1}), (TrainConfig, {"lora_dropout": 1}), (TrainConfig, {"train_data_dir": None}),
        (TrainConfig, {"text_encoder_lr": 1.0}), (TrainConfig, {"snr_gamma": 5.0, "debiased_estimation": True}),
        (TrainConfig, {"min_timestep": 900, "max_timestep": 800}), (TrainConfig, {"logit_mean": float("nan")}),
        (TrainConfig, {"timestep_bias_multiplier": 2}), (TrainConfig, {"timestep_bias_strategy": "later"}),
        (TrainConfig, {"timestep_bias_strategy": "later", "timestep_sampling": "beta"}),
        (TrainConfig, {"timestep_bias_strategy": "later", "timestep_bias_portion": 3}),
        (TrainConfig, {"timestep_bias_strategy": "range", "timestep_bias_begin": 9, "timestep_bias_end": 3}),
        (TrainConfig, {"caption_separator": ""}), (TrainConfig, {"optimizer": "adamm"}),
        (TrainConfig, {"use_8bit_adam": True, "optimizer": "lion"}), (TrainConfig, {"optimizer_args": ("lr=1",)}),
        (TrainConfig, {"lora_plus_ratio": 2, "optimizer": "prodigy"}), (TrainConfig, {"optimizer_args": ("x",)}),
        (TrainConfig, {"ema_decay": 0.9, "optimizer": "schedule_free_adamw"}),
        (TrainConfig, {"block_lr_factors": ("down=2",), "optimizer": "prodigy"}),
        (TrainConfig, {"init_lora_weights": "x"}), (TrainConfig, {"init_lora_weights": "pissa", "use_dora": True}),
        (TrainConfig, {"init_lora": "x", "use_rslora": True}), (TrainConfig, {"adapter": "loha", "use_dora": True}),
        (TrainConfig, {"validation_without_trigger": True}), (TrainConfig, {"hub_model_id": "a/b"}),
        (TrainConfig, {"dataset_streaming": True, "validation_split": 0.5}),
        (TrainConfig, {"base_precision": "fp16"}), (TrainConfig, {"gradient_checkpointing_blocks": ("mid",)}),
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
            assert say_problem("fr", problem) != problem, problem
            assert say_problem("en", problem) == problem
    assert all(re.compile(pattern) for pattern, _ in PROBLEMS)


def test_the_language_is_the_first_of_ours_that_the_browser_asks_for():
    class Request:
        def __init__(self, accept):
            self.headers = {"accept-language": accept}

    asked = {
        "fr-CH, fr;q=0.9, en;q=0.8, de;q=0.7, *;q=0.5": "fr", "en-US,en;q=0.5": "en", "de,en;q=0.3,fr;q=0.8": "fr",
        "": "en", "de": "en", "fr;q=x,en": "en",
    }  # fmt: skip
    assert {accept: language_of(Request(accept)) for accept in asked} == asked
    assert say("fr", "step {step}", step=3) == "pas 3" and key_of("a {b|c}") == "a (b|c)"


# --- what a run tells ---


def test_a_history_reads_on_and_forgets_what_a_resumed_run_did_again(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    history = History(tmp_path / "events.jsonl")
    assert history.read().steps == []
    log.write("started", total_steps=20)
    for step in (1, 2, 3, 4):
        log.write("step", step=step, loss=float(step))
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"time": 1, "event": "st')
    assert [event["step"] for event in history.read().steps] == [1, 2, 3, 4] and history.total_steps == 20
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'ep", "step": 3, "loss": 9.0}\nrubbish\n')
    assert [event["loss"] for event in history.read().steps] == [1.0, 2.0, 9.0]
    assert len(history.read().steps) == 3
    (tmp_path / "events.jsonl").unlink()
    EventLog(tmp_path / "events.jsonl").write("step", step=1, loss=5.0)
    assert [event["loss"] for event in history.read().steps] == [5.0]


def test_the_speed_is_that_of_the_last_steps_whatever_came_between(tmp_path):
    history = History(tmp_path / "none")
    history.total_steps = 20
    for every in (1, 2):
        told = range(every, 11, every)
        history.steps = [{"event": "step", "step": n, "time": 2.0 * n + (100 if n > 5 else 0)} for n in told]
        assert history.seconds_per_step() == 2 and history.seconds_left() == 20


def test_smoothing_of_equal_values_is_that_value_from_the_first_step_on():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([0.0] * 50 + [1.0] * 200)[-1] == pytest.approx(1, abs=1e-3)


def test_a_plot_thins_its_points_keeps_the_last_and_survives_odd_numbers():
    points = [(float(n), float(n)) for n in range(5000)]
    assert len(thinned(points)) <= 400 and thinned(points)[-1] == points[-1]
    html = chart("Loss <b>", [Line("a&b", [(1, 1.0), (2, float("nan")), (3, float("inf")), (4, 2.0), (5, None)])], "-")
    assert "nan" not in html and "inf" not in html and "&lt;b&gt;" in html and "a&amp;b" in html
    assert "empty" in chart("Loss", [Line("a", [])], "none yet")
    for value in (0.0, 1.0, -3.0, 1e-8, 1e8):
        assert "polyline" in chart("x", [Line("a", [(1, value), (2, value)])], "-")
    assert nice_ticks(0, 10) == [0, 5, 10] or nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]


def test_what_a_run_and_a_caption_say_is_escaped():
    evil = '<script>alert(1)</script><img src=x onerror="x">'
    history = History(Path("none"))
    history.messages.append({"time": 0, "event": "message", "text": evil})
    state = RunState("failed", 3, evil)
    pages = [
        show.log("en", history, [evil, f"error: {evil}"]),
        show.progress("en", evil, state, history),
        show.gallery("en", {(0, 0): {1: Path("none.png")}}, (evil,), 0),
    ]
    for page in pages:
        assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "</style" not in css_text("x</style><script>") and '"' not in css_text('"}*{}')


def test_the_log_is_newest_first_and_coloured_by_level():
    history = History(Path("none"))
    history.messages.extend([
        {"time": 0, "event": "message", "text": "first"}, {"time": 1, "event": "checkpoint", "step": 5},
        {"time": 2, "event": "failed", "reason": "disk"},
    ])  # fmt: skip
    html = show.log("en", history, ["fine", "UserWarning: hm", "error: no"])
    assert html.index("disk") < html.index("step 5") < html.index("first")
    assert html.index("error: no") < html.index("hm") < html.index("fine")
    assert 'class="error"' in html and 'class="warning"' in html and 'class="good"' in html


def test_a_stopped_run_says_where_and_what_was_saved():
    history = History(Path("none"))
    stopped = show.progress("en", "cat", RunState("stopped", 7, "x", "checkpoint-7"), history)
    assert "Stopped at step 7, saved checkpoint-7." in stopped
    assert "Arrêté au pas 7" in show.progress("fr", "cat", RunState("stopped", 7, "x", "checkpoint-7"), history)


# --- as a tab of another app ---


def test_the_page_is_a_tab_of_another_app(tmp_path):
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as app, gr.Tabs():
        with gr.Tab("mine"):
            gr.Textbox(label="own")
        create_tab(places=Workspace(tmp_path), title="LoRA")
    ids = [component["props"].get("elem_id") for component in app.get_config_file()["components"]]
    assert "train-rank" in ids and ids.count("train") == 1


def test_the_host_is_told_before_anything_of_ours_wants_the_gpu_and_may_refuse(tmp_path):
    from webui.context import Context
    from webui.runs.jobs import Jobs
    from webui.runs.launch import prepare_job

    def refuse():
        assert jobs.all() == []
        raise ConfigError("busy")

    jobs = Jobs(tmp_path)
    context = Context(Workspace(tmp_path), jobs, refuse)
    config = flat_preprocess_config(input_dir="a", output_dir=str(tmp_path / "b"), caption_model="none")
    with pytest.raises(ConfigError, match="busy"):
        context.start(prepare_job(jobs, config))
    assert jobs.all() == []
    assert to_yaml(config) == (next((tmp_path / ".page" / "jobs").iterdir()) / "config.yaml").read_text()
