"""Every fault brought about for real: exit code, words, what is left on the disk, and the run after it."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from sdxl_lora.run.checkpoints import checkpoints, problem_with
from sdxl_lora.run.events import read_events
from sdxl_lora.run.session import read_status
from tests.helpers.launch import Launched, launch
from tests.helpers.recorded_batches import met, note_what_is_met

STEPS = 6


@pytest.fixture
def config(train_config, tmp_path):
    """Settings to the config of a run of six steps, a checkpoint after every second one, two pictures a step."""

    def make(name="run", **settings):
        defaults = {"max_train_steps": STEPS, "checkpointing_steps": 2, "checkpoints_total_limit": 2}
        return train_config(
            **{**defaults, "gradient_accumulation_steps": 2, "output_dir": str(tmp_path / name), **settings}
        )

    return make


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Final weights of a run that nothing happened to, by the settings that matter; trained once each."""
    return {}


def weights(folder):
    return load_file(checkpoints(folder)[-1] / "lora_state.safetensors")


def assert_ends_as_uninterrupted(uninterrupted, config, folder, **settings):
    """Bit for bit."""
    key = str(sorted(settings.items()))
    if key not in uninterrupted:
        whole = config("whole", **settings)
        codes, printed = launch(whole, folder.parent / "whole.log")
        assert codes == [0], printed
        uninterrupted[key] = weights(folder.parent / "whole")
    ours = weights(folder)
    assert checkpoints(folder)[-1].name == f"checkpoint-{STEPS}"
    assert all(torch.equal(ours[name], tensor) for name, tensor in uninterrupted[key].items())


def assert_all_valid(folder):
    assert all(problem_with(path) is None for path in checkpoints(folder))


def test_killed_between_steps_the_same_command_goes_on(config, tmp_path, uninterrupted):
    codes, _ = launch(config(), tmp_path / "log", TRAINER_FAULT="kill9@step=4")
    assert codes == [-signal.SIGKILL]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    codes, printed = launch(config(), tmp_path / "log")
    assert codes == [0] and "going on after step 2" in printed
    assert_ends_as_uninterrupted(uninterrupted, config, tmp_path / "run")


POINTS_IN_A_SAVE = 12  # the adapter, before and after each of five files, the manifest, the rename, the rotation


def test_killed_anywhere_in_a_save_an_older_checkpoint_stands(config, tmp_path, uninterrupted):
    """Every point of the third save, which also rotates the first checkpoint away."""
    first_two = config("begun", max_train_steps=4)
    assert launch(first_two, tmp_path / "log")[0] == [0]
    for point in range(1, 30):
        folder = tmp_path / f"run-{point}"
        shutil.copytree(tmp_path / "begun", folder)
        codes, printed = launch(config(folder.name), tmp_path / "log", TRAINER_FAULT=f"kill9@checkpoint_file={point}")
        if codes == [0]:  # the save has no more points
            break
        assert codes == [-signal.SIGKILL], printed
        left = checkpoints(folder)
        assert_all_valid(folder)
        assert left and left[-1].name in ("checkpoint-4", "checkpoint-6")
        codes, printed = launch(config(folder.name), tmp_path / "log")
        assert codes == [0], printed
        assert list(folder.glob(".tmp-*")) == []
        assert_ends_as_uninterrupted(uninterrupted, config, folder)
    assert point > POINTS_IN_A_SAVE


@pytest.mark.parametrize("optimizer, text", [("adamw", True), ("adamw8bit", False)])
def test_deterministic_runs_resume_bit_for_bit_with_all_that_draws(config, tmp_path, uninterrupted, optimizer, text):
    """Dropout, flips, EMA, 8-bit states, text encoders."""
    settings = {"deterministic": True, "lora_dropout": 0.2, "random_flip": True, "optimizer": optimizer, "rank": 64}
    settings |= {"train_text_encoder": text, "ema_decay": 0.9, "proportion_empty_prompts": 0.3}
    assert launch(config(**settings), tmp_path / "log", TRAINER_FAULT="kill9@step=4")[0] == [-signal.SIGKILL]
    codes, printed = launch(config(**settings), tmp_path / "log")
    assert codes == [0], printed
    assert_ends_as_uninterrupted(uninterrupted, config, tmp_path / "run", **settings)


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(config, tmp_path, uninterrupted):
    """A limit on file size, as a quota gives it: the adapter's file is larger, the log of events is not.

    Also where a person asks to keep one checkpoint.
    """
    limit = {"checkpoints_total_limit": 1}
    assert launch(config(max_train_steps=2, **limit), tmp_path / "log")[0] == [0]
    codes, printed = launch(config(**limit), tmp_path / "log", LIMIT_FILE_SIZE="100000")
    assert codes == [5], printed
    assert "bytes are free, a checkpoint needs about" in printed and "checkpoint-2 is good" in printed
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 5, 4)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert not list((tmp_path / "run").glob(".tmp-checkpoint-*"))
    assert launch(config(**limit), tmp_path / "log")[0] == [0]
    assert_ends_as_uninterrupted(uninterrupted, config, tmp_path / "run")


@pytest.mark.parametrize("fault, number", [("term", signal.SIGTERM), ("int", signal.SIGINT)])
def test_a_signal_finishes_the_step_and_saves(config, tmp_path, uninterrupted, fault, number):
    codes, printed = launch(config(), tmp_path / "log", TRAINER_FAULT=f"{fault}@step=3")
    assert codes == [0] and f"stopped at step 3, saved checkpoint-3 ({number.name})" in printed
    assert read_status(tmp_path / "run")["state"] == "stopped"
    assert launch(config(), tmp_path / "log")[0] == [0]
    assert_ends_as_uninterrupted(uninterrupted, config, tmp_path / "run")


def test_killed_while_caching_the_same_command_fills_in_what_is_missing(config, tmp_path):
    def records():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}

    codes, _ = launch(config(), tmp_path / "log", TRAINER_FAULT="kill9@caching=3")
    before = records()
    assert codes == [-signal.SIGKILL] and len(before) == 3
    codes, printed = launch(config(max_train_steps=1), tmp_path / "log")
    assert codes == [0] and "going on" not in printed
    assert len(records()) == 4 + 4 and before.items() <= records().items(), "pictures and captions; none is made again"


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


def test_a_command_that_is_refused_changes_nothing_of_a_finished_run(config, tmp_path):
    """By other settings, pictures that are not there, a base that is none, and a name that cannot be."""
    assert launch(config(max_train_steps=2), tmp_path / "log")[0] == [0]
    before = files_of(tmp_path / "run")
    refused = {4: {"rank": 8}, 3: {"train_data_dir": str(tmp_path / "nowhere")}}
    refused[2] = {"pretrained_model_name_or_path": str(tmp_path / "run")}
    for code, settings in refused.items():
        assert launch(config(**settings), tmp_path / "log")[0] == [code]
        assert files_of(tmp_path / "run") == before, settings
    assert launch(config(rank=8, gradient_accumulation_steps=1), tmp_path / "log", world_size=2)[0] == [4, 4]
    assert files_of(tmp_path / "run").items() >= before.items()


FULL = "a tmpfs of a few kilobytes, which root alone can mount"


@pytest.fixture
def disk(tmp_path):
    """A function from a size in bytes to a folder on a disk of that size, empty each time."""
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip(f"needs {FULL}")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        subprocess.run(["umount", folder], check=False, capture_output=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode:
            pytest.skip(f"needs {FULL}")
        return folder

    yield mount
    subprocess.run(["umount", folder], check=False, capture_output=True)


def test_a_disk_that_is_full_from_the_start_or_at_any_later_file_is_named_with_its_room(config, tmp_path, disk):
    for size in (4096, 8192, 16_384, 200_000, 760_000, 920_000):
        folder = disk(size)
        codes, printed = launch(config(output_dir=str(folder / "run"), max_train_steps=2), tmp_path / "log")
        assert codes == [5], (size, printed)
        assert "Traceback" not in printed and f"error: cannot write to {folder}" in printed, (size, printed)
        assert "bytes are free" in printed


def test_a_full_disk_of_the_caches_is_named_not_the_runs(config, tmp_path, disk):
    cache = disk(16_384)
    codes, printed = launch(config(cache_dir=str(cache)), tmp_path / "log")
    assert codes == [5] and f"error: cannot write to {cache}" in printed, printed
    assert any(f": {free:,} bytes are free" in printed for free in range(0, 16_385, 4096))


def test_out_of_memory_says_what_to_change_and_ends_no_training_while_sampling(config, tmp_path):
    settings = {"validation_prompt": ("a cat",), "validation_inference_steps": 2}
    codes, printed = launch(config(**settings), tmp_path / "log", TRAINER_FAULT="oom@sample=1")
    assert codes == [0] and "out of memory while drawing samples at step 0, going on" in printed
    codes, printed = launch(config("second"), tmp_path / "log", TRAINER_FAULT="oom@step=3")
    assert codes == [7] and "out of memory at 64 px, batch 1, peak" in printed and "--gradient_checkpointing" in printed
    assert read_status(tmp_path / "second")["exit_code"] == 7
    codes, printed = launch(config("second"), tmp_path / "log", TRAINER_FAULT="oom@checkpoint_file=1")
    assert codes == [7] and checkpoints(tmp_path / "second")[-1].name == "checkpoint-2"


def test_nan_is_seen_by_both_processes_before_the_step(config, tmp_path):
    codes, printed = launch(
        config(gradient_accumulation_steps=1), tmp_path / "log", world_size=2, TRAINER_FAULT="nan@step=3,rank=1"
    )
    assert codes == [6, 6]
    assert "step 3: loss nan" in printed and "the newest checkpoint is checkpoint-2" in printed
    assert "Traceback" not in printed


def test_a_stop_file_stops_both_processes_at_the_same_step(config, tmp_path):
    launched = Launched(config(max_train_steps=10_000, gradient_accumulation_steps=1), tmp_path / "log", world_size=2)
    wait_for_step(tmp_path / "run", 2)
    (tmp_path / "run" / "stop").touch()
    assert launched.wait() == [0, 0], launched.printed()
    status = read_status(tmp_path / "run")
    assert status["state"] == "stopped" and status["last_checkpoint"] == f"checkpoint-{status['step']}"
    assert f"stopped at step {status['step']}, saved checkpoint-{status['step']} (stop file)" in launched.printed()


def wait_for_step(folder, step, seconds=90):
    until = time.time() + seconds
    while not ((folder / "events.jsonl").exists() and len(list(read_events(folder / "events.jsonl", "step"))) >= step):
        assert time.time() < until, "the run does not get to its steps"
        time.sleep(0.05)


@pytest.mark.parametrize("fault, word", [("kill9", "is gone"), ("stop", "does not answer")])
def test_a_process_that_dies_or_hangs_is_named_by_the_other(config, tmp_path, fault, word):
    settings = config(gradient_accumulation_steps=1, process_timeout_seconds=5)
    launched = Launched(settings, tmp_path / "log", world_size=2, TRAINER_FAULT=f"{fault}@step=4,rank=1")
    launched.processes[0].join(60)
    assert launched.processes[0].exitcode == 8, launched.printed()
    launched.processes[1].kill()
    assert f"error: rank 1 {word} (last seen at step" in launched.printed()
    assert "rank 0 ends at step 3" in launched.printed()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert launch(settings, tmp_path / "log", world_size=2)[0] == [0, 0]


def test_two_runs_in_one_directory_the_second_is_refused(config, tmp_path):
    first = Launched(config(max_train_steps=10_000), tmp_path / "log")
    wait_for_step(tmp_path / "run", 1)
    codes, printed = launch(config(), tmp_path / "second log")
    assert codes == [2] and f"another run (pid {first.processes[0].pid} on " in printed
    os.kill(first.processes[0].pid, signal.SIGTERM)
    assert first.wait() == [0]


@pytest.mark.parametrize("worlds", [(2, 1, 2), pytest.param((1, 2, 1), marks=pytest.mark.slow)], ids=str)
def test_more_and_fewer_processes_on_resume_see_the_same(config, tmp_path, worlds):
    """The same pictures, noise, timesteps and rate, to the last bit; losses and weights to rounding."""
    settings = {"adam_epsilon": 1e-4, "random_flip": True, "lr_scheduler": "cosine", "proportion_empty_prompts": 0.3}
    noting = {"first": note_what_is_met, "MET": str(tmp_path / "met")}
    for world_size, steps in zip(worlds, (2, 4, STEPS), strict=True):
        run = config(**settings, gradient_accumulation_steps=2 // world_size)
        fault = {"TRAINER_FAULT": f"term@step={steps}"} if steps < STEPS else {}
        codes, printed = launch(run, tmp_path / "log", world_size, **fault, **noting)
        assert codes == [0] * world_size, printed
    noting["MET"] = str(tmp_path / "met by one")
    assert launch(config("whole", **settings), tmp_path / "log", **noting)[0] == [0]
    by_one = met(tmp_path / "met by one")
    assert met(tmp_path / "met") == by_one and sorted(by_one) == list(range(1, STEPS + 1))
    ours, whole = (list(read_events(tmp_path / name / "events.jsonl", "step")) for name in ("run", "whole"))
    assert [step["step"] for step in ours] == list(range(1, STEPS + 1))
    assert [step["learning_rate"] for step in ours] == [step["learning_rate"] for step in whole]
    assert [step["loss"] for step in ours] == pytest.approx([step["loss"] for step in whole], rel=1e-5)
    ours, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert max((ours[name] - whole[name]).abs().max() for name in whole) < 1e-6


def run_until_killed_no_more(config, folder, name, chance):
    """One run of six steps, killed at random points with one or two processes until it ends. Returns the kills."""
    every, kills = chance.choice([1, 2, 3]), 0
    while True:
        world_size = chance.choice([1, 1, 2])
        run = config(name, checkpointing_steps=every, gradient_accumulation_steps=2 // world_size, adam_epsilon=1e-4)
        where = chance.choice([f"step={chance.randint(1, STEPS)}", f"checkpoint_file={chance.randint(1, 30)}"])
        codes, printed = launch(run, folder / "log", world_size, TRAINER_FAULT=f"kill9@{where},rank=0")
        assert_all_valid(folder / name)
        if codes == [0] * world_size:
            return kills
        assert -signal.SIGKILL in codes, printed
        kills += 1


@pytest.mark.parametrize("kills", [18, pytest.param(200, marks=pytest.mark.slow)])
def test_random_kills_end_where_the_uninterrupted_run_does(config, tmp_path, kills):
    """18 kills here and the 12 inside a save above are 30."""
    assert launch(config("whole", adam_epsilon=1e-4), tmp_path / "log")[0] == [0]
    whole, chance, done, runs = weights(tmp_path / "whole"), random.Random(0), 0, 0
    while done < kills:
        name, runs = f"run-{runs}", runs + 1
        done += run_until_killed_no_more(config, tmp_path, name, chance)
        ours = weights(tmp_path / name)
        assert max((ours[key] - whole[key]).abs().max() for key in whole) < 1e-6
