"""Flags and YAML: one parser, typos refused with a suggestion, quick answers."""

import random
import subprocess
import sys
from itertools import pairwise

import pytest

from sdxl_lora.config.cli import load_config, program, to_yaml
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from tests.helpers.configs import flat_train_config
from tests.helpers.paths import ROOT

NEEDED = ["--output_dir", "out", "--train_data_dir", "data"]


def write(path, text):
    path.write_text(text)
    return ["--config", str(path)]


def test_a_flag_wins_over_the_file_wherever_it_stands(tmp_path):
    file = write(tmp_path / "run.yaml", "output_dir: out\ntrain_data_dir: data\nlearning_rate: 1e-4\nrank: 8\n")
    for argv in ([*file, "--learning_rate", "3e-4"], ["--learning_rate=3e-4", *file]):
        config = load_config(TrainConfig, argv)
        assert (config.optimizer.learning_rate, config.adapter.rank) == (3e-4, 8)


def test_hyphens_and_underscores_are_the_same():
    assert load_config(TrainConfig, [*NEEDED, "--train-batch-size", "3"]).batch.train_batch_size == 3
    assert load_config(TrainConfig, [*NEEDED, "--train_batch_size", "3", "--random_flip"]).data.random_flip


def test_every_kind_of_value_survives_the_file(tmp_path):
    settings = {
        "output_dir": "ou t",
        "train_data_dir": "-data: é",
        "validation_prompt": ("a cat, sitting", "日本: 'x' \"y\""),
        "lora_alpha": 0.5,
        "random_flip": True,
        "center_crop": False,
        "checkpointing_steps": None,
        "resume_from_checkpoint": None,
    }
    for prompts in (settings["validation_prompt"], ("-dash",), ()):
        config = flat_train_config(**{**settings, "validation_prompt": prompts})
        assert load_config(TrainConfig, write(tmp_path / "c.yaml", to_yaml(config))) == config


def test_every_unknown_key_of_a_file_is_named_with_its_place_and_the_nearest(tmp_path, capsys):
    file = write(tmp_path / "run.yaml", "output_dir: out\nlearning_rat: 1\ntrain_data_dir: d\nrnak: 3\nzzz: 1\n")
    with pytest.raises(SystemExit) as exit:
        load_config(TrainConfig, file)
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert "run.yaml:2:1: unknown key 'learning_rat', did you mean 'learning_rate'?" in message
    assert "run.yaml:4:1: unknown key 'rnak', did you mean 'rank'?" in message
    assert "run.yaml:5:1: unknown key 'zzz'" in message


@pytest.mark.parametrize(
    "text, words",
    [
        ("rank: [1, {a: 2}]", "must be a value or a list"),
        ("- a\n- b", "lines of `name: value`"),
        ("rank: 3\nrank: 4", "a second time"),
        ("rank: 3\n  alpha: [", "mapping values are not allowed"),
        ("validation_prompt: [a, -b]", "begins with a dash"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path, capsys, text, words):
    with pytest.raises(SystemExit) as exit:
        load_config(TrainConfig, write(tmp_path / "bad.yaml", text))
    assert exit.value.code == 2 and words in capsys.readouterr().err


def test_a_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        load_config(TrainConfig, ["--config", "nowhere.yaml"])
    assert capsys.readouterr().err == "error: cannot read nowhere.yaml: No such file or directory\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--learning_rat", "1"], "--learning_rate"),
        (["--rank", "many"], "--rank"),
        (["--mixed_precision", "fp8"], "'fp16'"),
        (["--rank", "0"], "rank is 0"),
        (["--learning_rate", "nan"], "learning_rate is nan"),
        (["--learning_rate", "-1"], "learning_rate is -1.0"),
        (["--lora_dropout", "1"], "below 1"),
        (["--resolution", "1023"], "nearest: 1016"),
        (["--dataset_name", "x/y"], "one of train_data_dir"),
    ],
)
def test_a_wrong_flag_is_refused_with_what_is_right(capsys, flags, words):
    with pytest.raises(SystemExit) as exit:
        load_config(TrainConfig, [*NEEDED, *flags])
    assert exit.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train_sdxl_lora.py"], ["-m", "preprocess"]])
@pytest.mark.parametrize("flag", ["--help", "--learning_rat=1"])
def test_help_and_a_typo_are_answered_without_the_slow_imports(command, flag):
    command = [sys.executable, "-X", "importtime", *command, flag]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == (0 if flag == "--help" else 2)
    assert "learning_rat" in result.stdout + result.stderr or command[-2] == "preprocess"
    imported = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    assert "tyro" in imported and not imported & {"torch", "numpy", "PIL", "transformers", "diffusers", "datasets"}


@pytest.mark.parametrize("config_class", [TrainConfig, PreprocessConfig])
def test_help_fills_every_line_of_a_narrow_terminal(capsys, monkeypatch, config_class):
    """No help text keeps the line breaks of the source."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        load_config(config_class, ["--help"])
    texts = [line.strip("│").rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, texts)) < 150, "the description alone is left to the terminal"
    for text, following in pairwise(texts):
        if text.startswith(" " * 7) and following.startswith(" " * 7):
            assert len(text) + len(f" {following.split()[0]}") > 77, f"{text!r} has room for {following!r}"


def test_the_program_is_named_as_it_is_typed():
    assert program("/home/me/trainer/preprocess/__main__.py") == "python -m preprocess"
    assert program("./train_sdxl_lora.py") == "train_sdxl_lora.py"


RUBBISH = ["", "\0", "\t", ": ", "- ", "{", "]", "é", "&a", "!!", "'", "\n"]


def test_no_yaml_brings_a_traceback(tmp_path, capsys):
    """Three hundred damaged files: each is read, or refused with words and code 2."""
    good = to_yaml(flat_train_config(output_dir="out", train_data_dir="data", validation_prompt=("a", "b: c")))
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        text = list(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(text))
            text[at : at + chance.randint(0, 3)] = chance.choice(RUBBISH)
        file = tmp_path / "fuzzed.yaml"
        file.write_text("".join(text), encoding="utf-8")
        try:
            load_config(TrainConfig, ["--config", str(file)])
        except SystemExit as exit:
            refused += 1
            assert exit.code == 2 and capsys.readouterr().err.strip()
    assert refused > 50


def test_nothing_in_a_settings_file_is_no_text(tmp_path):
    (tmp_path / "prepare.yaml").write_text("input_dir: a\noutput_dir: b\ntrigger_word:\nfallback_caption: no\n")
    config = load_config(PreprocessConfig, ["--config", str(tmp_path / "prepare.yaml")])
    assert (config.trigger_word, config.captions.fallback_caption) == ("", "no")
