"""Settings that nobody gives: the default, or the value of the run that goes on."""

import pytest
import yaml

from sdxl_lora.run import defaults, resume
from sdxl_lora.run.checkpoints import publish
from sdxl_lora.run.defaults import settle_defaults, settle_variant
from tests.helpers.building import forget_accelerators
from tests.helpers.configs import flat_train_config


def config_of(folder, **settings):
    return flat_train_config(str(folder / "run"), train_data_dir="data", **settings)


def run_before(folder, facts, settings):
    """Leave a checkpoint with these facts, of a run with these settings."""
    (folder / "run" / ".tmp-checkpoint-2").mkdir(parents=True)
    publish(folder / "run" / ".tmp-checkpoint-2", folder / "run" / "checkpoint-2", {"step": 2, "facts": facts})
    (folder / "run" / "config.yaml").write_text(settings, encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        ({}, "attention+ff"),
        ({"target_modules": "attention"}, "attention"),
        ({"target_modules": "to_q"}, "to_q"),
    ],
)
def test_a_new_run_trains_attention_and_feed_forward_unless_told(tmp_path, settings, targets):
    config, said = settle_defaults(config_of(tmp_path, **settings))
    assert config.adapter.target_modules == config.adapter.targets == targets
    assert said == ([] if settings else ["target_modules auto: attention+ff, the default"])
    assert (config.batch.max_train_steps, config.batch.num_train_epochs) == (None, None), "its images decide"
    assert config_of(tmp_path).adapter.targets == "attention+ff", "also where no run settles it"


def test_a_run_of_another_default_goes_on_as_it_began(tmp_path):
    """Attention alone and ten epochs were the defaults once, which a run recorded as its own."""
    run_before(tmp_path, {"target_modules": "attention"}, "num_train_epochs: 10\nmax_train_steps: null\n")
    config, said = settle_defaults(config_of(tmp_path))
    assert (config.adapter.target_modules, config.batch.num_train_epochs) == ("attention", 10)
    assert config.batch.max_train_steps is None
    assert said == [
        "target_modules auto: attention, as in the run being resumed",
        "length: num_train_epochs 10, as in the run being resumed; another can be given",
    ]
    given = config_of(tmp_path, max_train_steps=7, target_modules="all-linear")
    assert settle_defaults(given) == (given, []), "what is given counts, and a checkpoint that differs refuses it"


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ("num_train_epochs: 10\nmax_train_steps: 500\n", (500, None)),
        ("num_train_epochs: null\nmax_train_steps: null\n", (None, None)),
        ("{", (None, None)),
    ],
)
def test_the_length_of_the_run_before_is_kept_as_it_was_meant(tmp_path, recorded, expected):
    run_before(tmp_path, {}, recorded)
    config, said = settle_defaults(config_of(tmp_path))
    assert (config.batch.max_train_steps, config.batch.num_train_epochs) == expected
    assert config.adapter.target_modules == "attention+ff" and len(said) == 1 + (expected[0] is not None)


def test_a_folder_that_cannot_be_looked_into_has_no_run(tmp_path):
    _, said = settle_defaults(flat_train_config(str(tmp_path / ("a" * 300)), train_data_dir="data"))
    assert said == ["target_modules auto: attention+ff, the default"]


def test_a_lora_to_go_on_with_brings_its_own_modules(tmp_path):
    config, said = settle_defaults(config_of(tmp_path, init_lora="cat.safetensors"))
    assert config.adapter.target_modules == "attention+ff" and said == []
    run_before(tmp_path, {"target_modules": "as in cat.safetensors", "init_lora": "0ab1"}, "")
    config, _ = settle_defaults(config_of(tmp_path))
    assert config.adapter.target_modules == "attention+ff", "what such a run records is no name of modules"


@pytest.mark.parametrize(
    ("settings", "expected", "said"),
    [
        ({"mixed_precision": "bf16"}, "fp16", ["variant auto: fp16, half the size"]),
        ({"mixed_precision": "bf16", "base_precision": "nf4"}, "fp16", ["variant auto: fp16, half the size"]),
        ({"mixed_precision": "no"}, None, ["variant auto: full precision, as the UNet is kept in float32"]),
        (
            {"mixed_precision": "bf16", "base_precision": "fp32"},
            None,
            ["variant auto: full precision, as the UNet is kept in float32"],
        ),
        ({"mixed_precision": "bf16", "variant": "bf16"}, "bf16", []),
        ({"mixed_precision": "bf16", "variant": None}, None, []),
    ],
)
def test_auto_takes_half_precision_where_it_suffices(monkeypatch, tmp_path, settings, expected, said):
    monkeypatch.setattr(defaults, "settled_variant", lambda base: ("fp16", "half the size"))
    config = flat_train_config(str(tmp_path / "run"), train_data_dir="data", **settings)
    settled, lines = settle_variant(config)
    assert (settled.model.variant, lines) == (expected, said)


@pytest.mark.parametrize(
    ("recorded", "expected"), [("variant: fp16\n", "fp16"), ("variant: null\n", None), ("{", None), (None, None)]
)
def test_a_run_that_goes_on_keeps_its_variant(monkeypatch, tmp_path, recorded, expected):
    monkeypatch.setattr(defaults, "settled_variant", lambda base: pytest.fail("it is settled"))
    monkeypatch.setattr(resume, "checkpoint_before", lambda config: tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3").mkdir()
    if recorded is not None:
        (tmp_path / "config.yaml").write_text(recorded)
    config = flat_train_config(str(tmp_path), train_data_dir="data", mixed_precision="bf16")
    settled, lines = settle_variant(config)
    assert settled.model.variant == expected and lines[0].endswith(", as in the run being resumed")


def test_a_training_reads_the_fp16_files_says_so_and_goes_on_with_them(train, tiny_base, tmp_path):
    """And a run that began with the others goes on with those."""
    from examples.tiny_sdxl import tiny_sdxl

    both = tmp_path / "both"
    pipeline = tiny_sdxl()
    pipeline.save_pretrained(both)
    pipeline.save_pretrained(both, variant="fp16")
    settings = {"pretrained_model_name_or_path": str(both), "mixed_precision": "bf16", "checkpointing_steps": 1}
    run = train(**settings, max_train_steps=1)
    assert "variant auto: fp16, half the size" in (run / "events.jsonl").read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["variant"] == "fp16"
    forget_accelerators()
    assert yaml.safe_load((train(**settings, max_train_steps=2) / "config.yaml").read_text())["variant"] == "fp16"

    settings["output_dir"] = str(tmp_path / "full")
    train(**settings, max_train_steps=1, variant=None)
    run = train(**settings, max_train_steps=2)
    assert yaml.safe_load((run / "config.yaml").read_text())["variant"] is None, "else its checkpoint would not fit"
