"""The end of a training, and the same command after it."""

from types import SimpleNamespace

import pytest

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.run.events import EventLog, read_events
from sdxl_lora.training.finish import finished_files, settings_to_show
from tests.helpers.configs import flat_train_config


def files_of(folder):
    """Content and time of every file but the lock's."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_finished_run_is_left_as_it_is_by_its_own_command_and_by_refused_ones(train, capsys):
    settings = {"max_train_steps": 2, "validation_prompt": ("a cat",), "num_validation_images": 1}
    settings |= {"validation_inference_steps": 1, "report_to": "tensorboard", "mixed_precision": "auto"}
    run = train(**settings)
    before = files_of(run)
    assert "events.jsonl" in before and any(name.startswith("logs") for name in before)

    train(**settings)
    assert train.trained is None and files_of(run) == before
    assert "nothing to do: this run is finished, all 2 steps are done" in capsys.readouterr().err
    for error, refused in (
        (CheckpointError, {"rank": 8}),
        (CheckpointError, {"optimizer_args": ("momentun=0.9",)}),
        (ConfigError, {"pretrained_model_name_or_path": "nowhere"}),
    ):
        with pytest.raises(error):
            train(**settings | refused)
        assert files_of(run) == before, refused

    train(**settings, save_side_files=True)
    assert {"run.json", "run.png"} <= set(files_of(run)), "another command is done"
    (run / "run.safetensors").unlink()
    (run / "samples" / "step-000002-prompt-0-image-0.png").unlink()
    train(**settings, save_side_files=True)
    after = set(files_of(run))
    assert {"run.safetensors", "samples/step-000002-prompt-0-image-0.png"} <= after, "what is missing is made again"
    assert len(list(read_events(run / "events.jsonl", "finished"))) == 3


@pytest.mark.parametrize(
    ("events", "repository", "is_finished"),
    [
        (["finished"], None, True),
        (["finished", "published"], None, False),
        (["finished", "published"], "me/cat", True),
        (["finished"], "me/cat", False),
        (["finished", "published", "finished"], "me/cat", False),
        ([], None, False),
    ],
)
def test_a_run_whose_upload_failed_is_not_finished(tmp_path, monkeypatch, events, repository, is_finished):
    config = flat_train_config(str(tmp_path), train_data_dir="data")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (tmp_path / "README.md").touch()
    (tmp_path / "cat.safetensors").touch()
    log = EventLog(tmp_path / "events.jsonl")
    for event in events:
        log.write(event, **({"step": 2, "files": [str(tmp_path / "cat.safetensors")]} if event == "finished" else {}))
    run = SimpleNamespace(folder=tmp_path)
    assert bool(finished_files(config, run, 2, repository)) is is_finished
    assert finished_files(config, run, 3, repository) == []


def test_a_card_tells_that_text_encoders_train_alone(train_config):
    assert "train_unet" not in settings_to_show(train_config(train_text_encoder=True))
    assert settings_to_show(train_config(train_text_encoder=True, train_unet=False))["train_unet"] is False
