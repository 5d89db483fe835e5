"""Signals and stop files: what is saved, and where the next start goes on."""

import shutil
import signal

import pytest

from sdxl_lora.run.checkpoints import checkpoints, problem_with
from sdxl_lora.run.session import read_status
from tests.helpers.fault_runs import assert_ends_as_uninterrupted, wait_for_step
from tests.helpers.launch import Launched, launch
from tests.helpers.waiting import until


@pytest.mark.parametrize("fault, number", [("term", signal.SIGTERM), ("int", signal.SIGINT)])
def test_a_signal_finishes_the_step_and_saves(config, tmp_path, uninterrupted, fault, number):
    codes, printed = launch(config(), tmp_path / "log", TRAINER_FAULT=f"{fault}@step=3")
    assert codes == [0] and f"stopped at step 3, saved checkpoint-3 ({number.name})" in printed
    assert read_status(tmp_path / "run")["state"] == "stopped"
    assert launch(config(), tmp_path / "log")[0] == [0]
    assert_ends_as_uninterrupted(uninterrupted, config, tmp_path / "run")


def test_a_signal_while_caching_loading_or_sampling_stops_too(config, tmp_path):
    codes, printed = launch(config(), tmp_path / "log", TRAINER_FAULT="term@caching=2")
    assert codes == [0] and "stopped while caching (SIGTERM)" in printed
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2, "what was cached is kept"
    codes, printed = launch(config(), tmp_path / "log", TRAINER_FAULT="term@loading=1")
    assert codes == [0] and "stopped while loading (SIGTERM)" in printed
    assert read_status(tmp_path / "run")["state"] == "stopped" and checkpoints(tmp_path / "run") == []
    settings = {"validation_prompt": ("a cat",), "num_validation_images": 50, "validation_inference_steps": 2}
    codes, printed = launch(config(**settings), tmp_path / "log", TRAINER_FAULT="term@sample=2")
    assert codes == [0] and "stopped before step 1 (SIGTERM)" in printed
    assert len(list((tmp_path / "run" / "samples").glob("step-*.png"))) == 2
    settings["num_validation_images"] = 3
    codes, printed = launch(config(**settings), tmp_path / "log", TRAINER_FAULT="term@sample=5")  # at step 2
    assert codes == [0] and "stopped at step 2, saved checkpoint-2 (SIGTERM)" in printed
    assert len(list((tmp_path / "run" / "samples").glob("step-000002-*.png"))) == 2
    codes, printed = launch(config(**settings), tmp_path / "log")  # draws the third, and those of the last step
    assert codes == [0] and "going on after step 2" in printed
    assert len(list((tmp_path / "run" / "samples").glob("step-00000[26]-*.png"))) == 6


def test_a_stop_while_the_last_samples_are_drawn_leaves_them_and_the_lora_to_the_next_start(config, tmp_path):
    """Also where the drawing's step is none that is saved anyway."""
    settings = {"validation_prompt": ("a cat",), "validation_inference_steps": 1, "num_validation_images": 2}
    settings |= {"max_train_steps": 3, "checkpointing_steps": 2, "validation_steps": 1}
    for sample, step in ((3, 1), (5, 3)):  # counted anew by each start, which begins with what is missing
        codes, printed = launch(config(**settings), tmp_path / "log", TRAINER_FAULT=f"term@sample={sample}")
        assert codes == [0] and f"stopped at step {step}, saved checkpoint-{step} (SIGTERM)" in printed, printed
    assert launch(config(**settings), tmp_path / "log")[0] == [0]
    samples = [path.name for path in (tmp_path / "run" / "samples").glob("step-*.png")]
    assert len(samples) == 2 * 4 and (tmp_path / "run" / "run.safetensors").exists()


def test_a_resumed_run_that_ends_before_its_next_save_knows_where_it_stands(config, tmp_path):
    assert launch(config(max_train_steps=4), tmp_path / "log")[0] == [0]
    codes, printed = launch(config(), tmp_path / "log", TRAINER_FAULT="nan@step=5")
    assert codes == [6] and "the newest checkpoint is checkpoint-4" in printed
    status = read_status(tmp_path / "run")
    assert (status["step"], status["last_checkpoint"], status["state"]) == (4, "checkpoint-4", "failed")
    for fault in ("term@caching=1", "term@loading=1", "term@step=5"):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        assert launch(config(), tmp_path / "log", TRAINER_FAULT=fault)[0] == [0]
        status = read_status(tmp_path / "run")
        step = 5 if "step" in fault else 4
        assert (status["step"], status["last_checkpoint"]) == (step, f"checkpoint-{step}"), fault
    codes, printed = launch(config(resume_from_checkpoint="checkpoint-4"), tmp_path / "log", TRAINER_FAULT="oom@step=5")
    assert codes == [7] and read_status(tmp_path / "run")["last_checkpoint"] == "checkpoint-4"
    other = config("other", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"), max_train_steps=4)
    assert launch(other, tmp_path / "log")[0] == [0]
    assert read_status(tmp_path / "other")["last_checkpoint"] == str(tmp_path / "run" / "checkpoint-4")
    codes, printed = launch(config(max_train_steps=2), tmp_path / "log")
    assert codes == [0] and "5 steps are done, more than the 2 asked for; none is trained" in printed
    assert read_status(tmp_path / "run")["step"] == 5


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_command_that_is_refused_in_two_processes_leaves_a_run_as_it_was_or_none(config, tmp_path):
    assert launch(config(max_train_steps=2), tmp_path / "log")[0] == [0]
    before = files_of(tmp_path / "run")
    refused = {"rank": 8, "gradient_accumulation_steps": 1}
    assert launch(config(**refused), tmp_path / "log", world_size=2)[0] == [4, 4]
    assert files_of(tmp_path / "run") == before
    refused["train_data_dir"] = str(tmp_path / "nowhere")
    assert launch(config("other", **refused), tmp_path / "log", world_size=2)[0] == [3, 3]
    assert not (tmp_path / "other").exists()


def test_two_processes_save_as_they_are_asked_to_and_stop_at_the_same_step(config, tmp_path):
    """By files; and between two reports, which they agree upon with the second one's numbers."""
    settings = {"max_train_steps": 10_000, "gradient_accumulation_steps": 1, "checkpointing_steps": None}
    launched = Launched(config(**settings, logging_steps=2), tmp_path / "log", world_size=2)
    wait_for_step(tmp_path / "run", 1)
    (tmp_path / "run" / "save_now").touch()
    until(lambda: checkpoints(tmp_path / "run"))
    assert problem_with(checkpoints(tmp_path / "run")[0]) is None and not (tmp_path / "run" / "save_now").exists()
    assert int(checkpoints(tmp_path / "run")[0].name.rpartition("-")[2]) % 2 == 0
    (tmp_path / "run" / "stop").touch()
    assert launched.wait() == [0, 0], launched.printed()
    status = read_status(tmp_path / "run")
    assert status["state"] == "stopped" and status["last_checkpoint"] == f"checkpoint-{status['step']}"
    assert f"stopped at step {status['step']}, saved checkpoint-{status['step']} (stop file)" in launched.printed()
