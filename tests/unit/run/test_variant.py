"""What --variant auto becomes, is recorded as, and stays."""

import pytest
import yaml

from sdxl_lora.run import variant
from sdxl_lora.run.variant import settle_variant
from tests.helpers.building import forget_accelerators
from tests.helpers.configs import flat_train_config


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
    monkeypatch.setattr(variant, "settled_variant", lambda base: ("fp16", "half the size"))
    config = flat_train_config(str(tmp_path / "run"), train_data_dir="data", **settings)
    settled, lines = settle_variant(config)
    assert (settled.model.variant, lines) == (expected, said)


@pytest.mark.parametrize(
    ("recorded", "expected"), [("variant: fp16\n", "fp16"), ("variant: null\n", None), ("{", None), (None, None)]
)
def test_a_run_that_goes_on_keeps_its_variant(monkeypatch, tmp_path, recorded, expected):
    monkeypatch.setattr(variant, "settled_variant", lambda base: pytest.fail("it is settled"))
    monkeypatch.setattr(variant, "checkpoint_before", lambda config: tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3").mkdir()
    if recorded is not None:
        (tmp_path / "config.yaml").write_text(recorded)
    config = flat_train_config(str(tmp_path), train_data_dir="data", mixed_precision="bf16")
    settled, lines = settle_variant(config)
    assert settled.model.variant == expected and lines[0].endswith(", as in the run that goes on")


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
