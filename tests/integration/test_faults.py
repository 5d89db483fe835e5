"""Every fault brought about for real: exit code, words, what is left on the disk, and the run after it."""

import os
import random
import shutil
import signal

import pytest

from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.events import read_events
from tests.helpers.fault_runs import STEPS, assert_all_valid, assert_ends_as_uninterrupted, wait_for_step, weights
from tests.helpers.launch import Launched, launch
from tests.helpers.marks import slow
from tests.helpers.recorded_batches import met, note_what_is_met


def test_killed_between_steps_the_same_command_goes_on(config, tmp_path, uninterrupted):
    codes, _ = launch(config(), tmp_path / "log", TRAINER_FAULT="kill9@step=4")
    assert codes == [-signal.SIGKILL]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    codes, printed = launch(config(), tmp_path / "log")
    assert codes == [0] and "going on after step 2" in printed
    assert_ends_as_uninterrupted(uninterrupted, config, tmp_path / "run")


POINTS_IN_A_SAVE = 12  # the adapter, before and after each of five files, the manifest, the rename, the rotation


@pytest.mark.parametrize("goes_on", [False, *slow(True)], ids=["in a row", "one by one"])
def test_killed_anywhere_in_a_save_an_older_checkpoint_stands(config, tmp_path, uninterrupted, goes_on):
    """Every point of the third save, which also rotates the first checkpoint away.

    In a row, the start after a kill is the one that is killed at the next point, until the save is published; one by
    one, each goes on to the end.
    """
    first_two = config("begun", max_train_steps=4)
    assert launch(first_two, tmp_path / "log")[0] == [0]
    run = config()
    folder = tmp_path / "run"
    for point in range(1, 30):
        if not folder.exists():
            shutil.copytree(tmp_path / "begun", folder)
        codes, printed = launch(run, tmp_path / "log", TRAINER_FAULT=f"kill9@checkpoint_file={point}")
        if codes == [0]:  # the save has no more points
            break
        assert codes == [-signal.SIGKILL], printed
        left = checkpoints(folder)
        assert_all_valid(folder)
        assert left and left[-1].name in ("checkpoint-4", "checkpoint-6")
        if goes_on or left[-1].name == "checkpoint-6":
            codes, printed = launch(run, tmp_path / "log")
            assert codes == [0], printed
            assert list(folder.glob(".tmp-*")) == []
            assert_ends_as_uninterrupted(uninterrupted, config, folder)
            shutil.rmtree(folder)
    assert point > POINTS_IN_A_SAVE
    assert list(folder.glob(".tmp-*")) == []
    assert_ends_as_uninterrupted(uninterrupted, config, folder)


@pytest.mark.parametrize("optimizer, text", [("adamw", True), ("adamw8bit", False)])
def test_deterministic_runs_resume_bit_for_bit_with_all_that_draws(config, tmp_path, uninterrupted, optimizer, text):
    """Dropout, flips, EMA, 8-bit states, text encoders."""
    settings = {"deterministic": True, "lora_dropout": 0.2, "random_flip": True, "optimizer": optimizer, "rank": 64}
    settings |= {"train_text_encoder": text, "ema_decay": 0.9, "proportion_empty_prompts": 0.3}
    assert launch(config(**settings), tmp_path / "log", TRAINER_FAULT="kill9@step=4")[0] == [-signal.SIGKILL]
    codes, printed = launch(config(**settings), tmp_path / "log")
    assert codes == [0], printed
    assert_ends_as_uninterrupted(uninterrupted, config, tmp_path / "run", **settings)


def test_killed_while_caching_the_same_command_fills_in_what_is_missing(config, tmp_path):
    def records():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}

    codes, _ = launch(config(), tmp_path / "log", TRAINER_FAULT="kill9@caching=3")
    before = records()
    assert codes == [-signal.SIGKILL] and len(before) == 3
    codes, printed = launch(config(max_train_steps=1), tmp_path / "log")
    assert codes == [0] and "going on" not in printed
    assert len(records()) == 4 + 4 and before.items() <= records().items(), "pictures and captions; none is made again"


def test_nan_is_seen_by_both_processes_before_the_step(config, tmp_path):
    codes, printed = launch(
        config(gradient_accumulation_steps=1), tmp_path / "log", world_size=2, TRAINER_FAULT="nan@step=3,rank=1"
    )
    assert codes == [6, 6]
    assert "step 3: loss nan" in printed and "the newest checkpoint is checkpoint-2" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("fault, word, patience", [("kill9", "is gone", 1800), ("stop", "does not answer", 20)])
def test_a_process_that_dies_or_hangs_is_named_by_the_other(config, tmp_path, fault, word, patience):
    """Who dies is missed at once; who hangs, after the timeout, which a busy machine must not reach by itself."""
    settings = config(gradient_accumulation_steps=1, process_timeout_seconds=patience)
    launched = Launched(settings, tmp_path / "log", world_size=2, TRAINER_FAULT=f"{fault}@step=4,rank=1")
    launched.processes[0].join(240)
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


@pytest.mark.parametrize("worlds", [(2, 1, 2), *slow(((1, 2, 1),))], ids=str)
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


@pytest.mark.parametrize("kills", [3, *slow(200)])
def test_random_kills_end_where_the_uninterrupted_run_does(config, tmp_path, kills):
    """With one process and two, between steps and inside saves; the last run is killed until it ends."""
    assert launch(config("whole", adam_epsilon=1e-4), tmp_path / "log")[0] == [0]
    whole, chance, done, runs = weights(tmp_path / "whole"), random.Random(0), 0, 0
    while done < kills:
        name, runs = f"run-{runs}", runs + 1
        done += run_until_killed_no_more(config, tmp_path, name, chance)
        ours = weights(tmp_path / name)
        assert max((ours[key] - whole[key]).abs().max() for key in whole) < 1e-6
