"""Full disks and full memory: exit code, words, and the run after them."""

import os
import re
import subprocess

import pytest

from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.session import read_status
from tests.helpers.fault_runs import assert_ends_as_uninterrupted
from tests.helpers.launch import launch


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
    for size in (4096, 8192, 16_384, 200_000, 500_000, 600_000):
        folder = disk(size)
        codes, printed = launch(config(output_dir=str(folder / "run"), max_train_steps=2), tmp_path / "log")
        assert codes == [5], (size, printed)
        assert "Traceback" not in printed and re.search(rf"error: cannot write (to )?{folder}", printed), (
            size,
            printed,
        )
        assert re.search(r"[\d,]+ (bytes )?are free", printed)


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
