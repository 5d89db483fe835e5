"""Resolution of --mixed_precision auto, and a full-size base without a GPU."""

from types import SimpleNamespace

import pytest
import torch
import yaml

from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.run import precision
from sdxl_lora.run.precision import planned_precision, settle_precision
from sdxl_lora.training import checks
from sdxl_lora.training import dry_run as planning
from sdxl_lora.training.checks import lack_of_gpu
from tests.helpers.caches import nothing_is_cached
from tests.helpers.configs import flat_train_config

FULL = SimpleNamespace(parts={"unet": SimpleNamespace(values=2_567_463_684)})
TINY = SimpleNamespace(parts={"unet": SimpleNamespace(values=1_000_000)})


def settings_of(output_dir="run", **settings):
    return flat_train_config(output_dir, train_data_dir="data", **settings)


@pytest.mark.parametrize(
    ("device", "native", "settings", "expected"),
    [
        ("cuda", True, {}, "bf16"),
        ("cuda", False, {}, "fp16"),
        ("mps", True, {}, "bf16"),
        ("cpu", True, {}, "no"),
        ("cuda", False, {"base_precision": "bf16"}, "bf16"),
        ("cuda", True, {"base_precision": "nf4"}, "bf16"),
        ("cuda", False, {"mixed_precision": "bf16"}, "bf16"),
    ],
)
def test_auto_is_what_the_device_computes_in_natively(monkeypatch, tmp_path, device, native, settings, expected):
    state = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(precision, "start_processes", lambda *_: state)
    monkeypatch.setattr(precision, "device_here", lambda: state.device)
    monkeypatch.setattr(precision, "native_bfloat16", lambda _: native)
    config = settings_of(str(tmp_path / "run"), **settings)
    for settled, said in (settle_precision(config), planned_precision(config, is_for_a_gpu=False)):
        assert settled.compute.mixed_precision == expected
        if "mixed_precision" in settings:
            assert said == [] and settled == config
        else:
            assert said[0].startswith(f"mixed_precision auto: {expected}, ")


def test_processes_on_several_kinds_of_gpus_take_what_all_compute_in(monkeypatch, tmp_path):
    others = [(None, ("bf16", "natively")), (None, ("fp16", "no bf16"))]
    monkeypatch.setattr(precision, "start_processes", lambda *_: SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr(precision, "gather_object", lambda _: others)
    assert settle_precision(settings_of(str(tmp_path)))[1] == ["mixed_precision auto: fp16, no bf16"]


def test_a_run_keeps_its_precision_where_auto_goes_on_with_it(train, tmp_path):
    settings = {"checkpointing_steps": 1, "max_train_steps": 1}
    assert yaml.safe_load((train(**settings, mixed_precision="bf16") / "config.yaml").read_text())
    run = train(**settings | {"max_train_steps": 2}, mixed_precision="auto")
    assert yaml.safe_load((run / "config.yaml").read_text())["mixed_precision"] == "bf16"
    assert "mixed_precision auto: bf16, as in the run being resumed" in (run / "events.jsonl").read_text()
    with pytest.raises(CheckpointError, match=r"mixed_precision +bf16 +no"):
        train(**settings, mixed_precision="no")
    fresh = train(mixed_precision="auto", max_train_steps=1, output_dir=str(tmp_path / "fresh"))
    assert yaml.safe_load((fresh / "config.yaml").read_text())["mixed_precision"] == "no"


def test_a_damaged_or_missing_checkpoint_asks_for_no_precision(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "manifest.json").write_text("{")
    for wanted in ("latest", "checkpoint-3", "checkpoint-9", None):
        config = settings_of(str(tmp_path), resume_from_checkpoint=wanted)
        assert precision.precision_before(config) is None
    with pytest.raises(ConfigError, match="base_precision bf16 needs mixed_precision bf16, not fp16"):
        settings_of(base_precision="bf16", mixed_precision="fp16")


def test_a_full_size_base_does_not_train_on_a_cpu_unasked(monkeypatch):
    config, cpu = settings_of(), torch.device("cpu")
    monkeypatch.setattr(checks, "why_no_gpu", lambda _: ("torch has no CUDA", "install it"))
    said = lack_of_gpu(config, FULL, cpu)
    assert said.startswith("torch has no CUDA: ") and "(2.6 billion parameters)" in said
    assert said.endswith("Install it; or go on with --allow_cpu")
    assert lack_of_gpu(config, TINY, cpu) is None and lack_of_gpu(config, FULL, torch.device("cuda")) is None
    assert lack_of_gpu(settings_of(allow_cpu=True), FULL, cpu) is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "asks for the CPU" in lack_of_gpu(config, FULL, cpu)


def test_a_training_without_a_gpu_is_refused_before_it_works(train, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "FULL_SIZE", 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="--allow_cpu"):
        train(max_train_steps=1)
    assert nothing_is_cached(tmp_path)
    train(max_train_steps=1, allow_cpu=True)


def test_the_dry_run_of_a_full_base_warns_and_counts_as_on_a_gpu(train_config, full_configs, monkeypatch):
    for module in (precision, planning):
        monkeypatch.setattr(module, "device_here", lambda: torch.device("cpu"))
    said = planning.dry_run(train_config(pretrained_model_name_or_path=str(full_configs), mixed_precision="auto"))
    assert "mixed_precision auto: bf16, as on a GPU that supports it" in said and "--allow_cpu" in said
    here = planning.dry_run(train_config(mixed_precision="auto"))
    assert "mixed_precision auto: no, as this machine computes on its CPU" in here and "--allow_cpu" not in here
