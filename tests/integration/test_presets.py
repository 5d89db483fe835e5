"""Every preset in examples/ says what it is for, trains on the tiny base, and fits its card by the dry run's count."""

import re

import pytest

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import flat_values, replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.run.events import read_events
from sdxl_lora.run.session import read_status
from sdxl_lora.training.dry_run import plan_training
from tests.helpers.marks import slow
from tests.helpers.paths import ROOT

PRESETS = sorted(path for path in (ROOT / "examples").glob("*.yaml") if path.stem != "demo")
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
PRECISIONS = ("fp16", "bf16")  # in the order of the page's columns
# What has to do with where it runs and for how long, and nothing with what is trained
HERE = (
    "output_dir", "train_data_dir", "datasets", "cache_dir", "pretrained_model_name_or_path", "resolution",
    "max_train_steps", "mixed_precision", "variant", "report_to", "validation_steps", "validation_inference_steps",
)  # fmt: skip


def preset(path):
    return load_config(TrainConfig, ["--config", str(path)])


OTHERS = slow(*(path for path in PRESETS if path.stem not in ("anime", "vram_6gb")))


@pytest.mark.parametrize(
    "path", [path for path in PRESETS if path.stem in ("anime", "vram_6gb")] + OTHERS, ids=lambda path: path.stem
)
def test_a_preset_trains(train, train_config, path):
    config, here = preset(path), train_config(max_train_steps=2)
    settings = flat_values(config)
    settings |= {name: flat_values(here)[name] for name in HERE}
    if config.evaluation.validation_prompt:
        settings |= {"validation_steps": 2, "validation_inference_steps": 1, "num_validation_images": 1}
    run = train(**settings)
    assert read_status(run)["state"] == "done"
    steps = list(read_events(run / "events.jsonl", "step"))
    assert [step["step"] for step in steps] == [1, 2] and all(0 < step["loss"] < 10 for step in steps)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_in_two_lines_what_it_is_for(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.startswith("# ") for line in lines[:3]] == [True, True, False]


def documented():
    """{(preset, precision): GiB} of the table in docs/training.md."""
    rows = re.findall(r"^\| `(\w+)\.yaml` \|.*?\| ([\d.]*) ?\| ([\d.]*) ?\|$", PAGE, re.MULTILINE)
    return {
        (name, precision): gib for name, *both in rows for precision, gib in zip(PRECISIONS, both, strict=True) if gib
    }


def test_the_memory_of_every_preset_is_documented():
    stems = {path.stem for path in PRESETS}
    asked = {path.stem: preset(path).compute.mixed_precision for path in PRESETS}
    wanted = {(stem, precision) for stem in stems for precision in PRECISIONS if asked[stem] in ("auto", precision)}
    assert documented().keys() == wanted


@pytest.mark.parametrize("name", ["anime", "flow"])
def test_a_preset_for_a_kind_of_base_has_a_reason_in_each_line(name):
    lines = (ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    places = ("train_data_dir", "output_dir", "validation_prompt")
    assert [line for line in lines if "# " not in line and not line.startswith(places)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), documented())
def test_a_preset_fits_its_card_as_documented(train_config, full_configs, name, precision):
    path = ROOT / "examples" / f"{name}.yaml"
    here = train_config(pretrained_model_name_or_path=str(full_configs))
    paths = {"train_data_dir": here.data.train_data_dir, "pretrained_model_name_or_path": str(full_configs)}
    plan = plan_training(replace_flat(preset(path), **paths, variant=None, mixed_precision=precision))
    total = re.search(r"about ([\d.]+) GiB while training", plan.of_memory()[0])[1]
    card = int(re.search(r"(\d+) GB", path.read_text(encoding="utf-8"))[1])
    # a card of 8 GB has 7.6 GiB for programs, and sizes that are cut take some of it
    assert float(total) < 0.9 * card * (1000 / 1024)
    assert documented()[name, precision] == total
