"""Trackers for real: W&B's, TensorBoard's and Trackio's own files read back, of a run that was stopped and went on."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import read_events
from sdxl_lora.sampling.generate import read_samples
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.configs import flat_train_config
from tests.helpers.launch import launch
from tests.helpers.wandb_file import config_of, history_of, records

CANARIES = {"HF_TOKEN": "hf_" + "canary" * 5, "WANDB_API_KEY": "c0ffee" * 6 + "cafe"}
SETTINGS = {
    "max_train_steps": 7, "checkpointing_steps": 2, "validation_steps": 3, "num_validation_images": 2,
    "validation_prompt": ("sks, a cat", "a dog --d 5 --w 32 --n dark"), "validation_inference_steps": 1,
    "validation_split": 0.25, "report_to": "all", "tracker_project_name": "pets", "tracker_run_name": "my cat",
    "output_name": "cat", "loss_bins": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory, tiny_base, captioned_photographs):
    """The folder of a run that was stopped after its sixth step, went on from its fourth, and finished.

    Stopped and not killed, for W&B itself loses what it has not yet put into its file; so the checkpoint is spoiled.
    """

    folder = tmp_path_factory.mktemp("tracked")
    config = flat_train_config(
        output_dir=str(folder / "run"), pretrained_model_name_or_path=str(tiny_base), resolution=64, rank=4,
        train_data_dir=str(captioned_photographs), mixed_precision="no", **SETTINGS,
    )  # fmt: skip
    environment = {"WANDB_MODE": "offline", **CANARIES}
    codes, printed = launch(config, folder / "log", TRAINER_FAULT="term@step=6", **environment)
    assert codes == [0] and "stopped at step 6, saved checkpoint-6" in printed, printed
    (folder / "run" / "checkpoint-6" / "lora_state.safetensors").unlink()
    codes, printed = launch(config, folder / "log", **environment)
    assert codes == [0] and "going on after step 4" in printed, printed
    return folder / "run"


def wandb_files(run):
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


def test_wandb_goes_on_under_the_same_id_on_the_same_axis(stopped_and_resumed):
    first, second = wandb_files(stopped_and_resumed)
    runs = [records(path, "run")[0] for path in (first, second)]
    assert len({run.run_id for run in runs}) == 1
    assert runs[0].run_id == (stopped_and_resumed / "wandb-id.txt").read_text()
    assert [(run.project, run.display_name) for run in runs] == [("pets", "my cat")] * 2
    history = [history_of(path) for path in (first, second)]
    assert [sorted(rows) for rows in history] == [[0, 1, 2, 3, 4, 5, 6], [5, 6, 7]]
    assert all(history[0][step]["loss"] == history[1][step]["loss"] for step in (5, 6))
    logged = {step: row["loss"] for rows in history for step, row in rows.items() if step}
    told = {event["step"]: event["loss"] for event in read_events(stopped_and_resumed / "events.jsonl", "step")}
    assert logged == told and sorted(logged) == [1, 2, 3, 4, 5, 6, 7]
    for name in ("learning_rate", "grad_norm", "images_per_second", "loss_timesteps_0_499"):
        assert any(name in row for row in history[1].values())
    assert {step for rows in history for step, row in rows.items() if "validation_loss" in row} == {0, 3, 6, 7}


def test_wandbs_config_is_the_runs_and_no_file_of_the_run_holds_a_secret(stopped_and_resumed):
    config = config_of(wandb_files(stopped_and_resumed)[-1])
    assert (config["rank"], config["max_train_steps"], config["output_name"]) == (4, 7, "cat")
    assert not [name for name in config if "token" in name.replace("keep_tokens", "") or "key" in name]
    for path in stopped_and_resumed.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [name for name, secret in CANARIES.items() if secret.encode() in data], path


def test_wandbs_sample_tables_hold_every_picture_with_its_settings(stopped_and_resumed):
    tables = [
        {entry.path: Path(entry.local_path) for entry in record.manifest.contents}
        for path in wandb_files(stopped_and_resumed)
        for record in records(path, "artifact")
        if record.type == "run_table"
    ]
    rows = [row for table in tables for row in json.loads(table["samples.table.json"].read_text())["data"]]
    assert [row[0] for row in rows] == [step for step in (0, 3, 6, 7) for _ in range(4)]
    assert [row[1:7] for row in rows[-4:]] == [
        ["sks, a cat", "", "64x64", 0, 5, 1], ["sks, a cat", "", "64x64", 1, 5, 1],
        ["a dog", "dark", "32x64", 5, 5, 1], ["a dog", "dark", "32x64", 6, 5, 1],
    ]  # fmt: skip
    drawn = [image for of_prompt in read_samples(stopped_and_resumed / "samples", 7, 2, 2) for image in of_prompt]
    for row, ours in zip(rows[-4:], drawn, strict=True):
        theirs = Image.open(tables[-1][row[7]["path"]])
        assert (np.asarray(theirs.convert("RGB")) == np.asarray(ours)).all()
    for history in map(history_of, wandb_files(stopped_and_resumed)):
        assert all("grid._type" in row or "grid.filenames" in row for step, row in history.items() if step in (3, 7))


def test_the_lora_is_an_artifact_with_what_it_was_trained_by(stopped_and_resumed):
    [artifact] = [
        record for record in records(wandb_files(stopped_and_resumed)[-1], "artifact") if record.name == "cat"
    ]
    about = json.loads(artifact.metadata)
    assert artifact.type == "model" and (about["rank"], about["steps"]) == (4, 7) and about["best_step"] in (3, 6, 7)
    assert about["base_model"] == "tiny-sdxl"
    files = {entry.path: entry for entry in artifact.manifest.contents}
    names = {"cat.safetensors", "cat-best.safetensors", "pytorch_lora_weights.safetensors"}
    assert files.keys() == names
    for name in names:
        assert files[name].size == (stopped_and_resumed / name).stat().st_size


def test_tensorboard_shows_each_step_once(stopped_and_resumed):
    log = EventAccumulator(str(stopped_and_resumed / "logs" / "pets"), size_guidance={"images": 0, "scalars": 0})
    log.Reload()
    for name in ("loss", "learning_rate", "grad_norm"):
        assert [event.step for event in log.Scalars(name)] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.step for event in log.Scalars("validation_loss")] == [0, 3, 6, 7]
    told = [event["loss"] for event in read_events(stopped_and_resumed / "events.jsonl", "step")]
    assert [event.value for event in log.Scalars("loss")] == pytest.approx(told[:4] + told[-3:])
    images = {tag: [event.step for event in log.Images(tag)] for tag in log.Tags()["images"]}
    assert images["grid"] == [0, 3, 6, 7]
    assert sum("sks, a cat" in tag for tag in images) == 1 and all(steps == [0, 3, 6, 7] for steps in images.values())
    assert len(list((stopped_and_resumed / "logs" / "pets").rglob("hparams.yml"))) == 1


def test_a_run_that_starts_anew_in_its_folder_is_a_new_one(train, monkeypatch):
    """Killed before its first checkpoint."""
    settings = {"report_to": "all", "max_train_steps": 3}
    do = TrainStep.__call__

    def dying(self, batch, step, learning_rate):
        if step == 2:
            raise KeyboardInterrupt
        do(self, batch, step, learning_rate)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainStep, "__call__", dying)
        train(**settings)
    wandb.finish()
    run = train(**settings)
    ids = [path.stem.removeprefix("run-") for path in wandb_files(run)]
    assert len(set(ids)) == 2 and (run / "wandb-id.txt").read_text() in ids
    log = EventAccumulator(str(run / "logs" / "sdxl-lora"))
    log.Reload()
    assert [event.step for event in log.Scalars("loss")] == [1, 2, 3]


def test_trackio_has_steps_config_and_pictures(train_config, tmp_path):
    settings = {**SETTINGS, "report_to": "trackio", "max_train_steps": 2, "validation_split": 0.0}
    store = {"TRACKIO_DIR": str(tmp_path / "trackio"), **CANARIES}
    for steps in (2, 3):
        codes, printed = launch(train_config(**{**settings, "max_train_steps": steps}), tmp_path / "log", **store)
        assert codes == [0], printed
    with sqlite3.connect(tmp_path / "trackio" / "pets.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = database.execute("select config from configs").fetchall()
    losses = [(name, step) for name, step, metrics in rows if b'"loss"' in bytes(metrics)]
    assert losses == [("my cat", 1), ("my cat", 2), ("my cat", 3)]
    assert [json.loads(bytes(config))["rank"] for (config,) in configs] == [4]
    assert len(list((tmp_path / "trackio").rglob("*.png"))) >= 3 * 3
    for path in (tmp_path / "trackio").rglob("*"):
        assert not path.is_file() or not [s for s in CANARIES.values() if s.encode() in path.read_bytes()]


def test_trackio_that_is_not_here_is_said_with_its_command(train, monkeypatch):
    from importlib import util

    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "trackio" else find_spec(name, *rest))
    with pytest.raises(ConfigError, match="pip install trackio=="):
        train(report_to="trackio")
