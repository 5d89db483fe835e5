"""Failed jobs are listed on the page with the real reason, however early they failed. With real processes."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from tests.helpers.jobs import add, over, queue_of
from tests.helpers.waiting import until
from webui.runs.jobs import Job, Jobs
from webui.runs.launch import new_job
from webui.runs.listing import RunState, find_runs, last_error, state_of
from webui.runs.run_history import History
from webui.widgets.html import progress


@pytest.fixture
def queue(tmp_path):
    with queue_of(tmp_path) as jobs:
        yield jobs


def ended(jobs: Jobs, job: Job) -> Job:
    return until(lambda: over(jobs, job))


def told(jobs: Jobs, console: str, exit_code: int | None = 1) -> str:
    """The reason that is seen in a console."""
    job = dataclasses.replace(new_job("prepare", "x"), state="ended", exit_code=exit_code)
    jobs.write(job)
    (jobs.folder_of(job.id) / "console.log").write_text(console)
    return last_error(jobs, job)


LAUNCHER = (
    "Traceback (most recent call last):\n  File 'x'\nsubprocess.CalledProcessError: Command '['python', "
    "'train_sdxl_lora.py']' {}.\n"
)
SEVERAL = (
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n=====\ntrain_sdxl_lora.py FAILED\n"
    "  error_file: <N/A>\n  traceback : To enable traceback see: https://example.com/errors\n"
)


def test_the_reason_is_the_programs_own_sentence_and_not_another_line_with_the_word(tmp_path):
    jobs = Jobs(tmp_path)
    sentence = "error: --strict: 1 picture cannot be used"
    for around in ("{}\n", "{}\n" + LAUNCHER.format("returned non-zero exit status 2"), "{}\n" + SEVERAL):
        before = "left out terror_bird.png: not an image\n  error.png: truncated\n"
        assert told(jobs, before + around.format(sentence)) == sentence
        assert told(jobs, around.format(sentence) + "12 errors in error.log\n") == sentence
    traceback = (
        "Traceback (most recent call last):\n  File 'x', line 3\n    raise error\ntorch.OutOfMemoryError: no {}\n"
    )
    launched = traceback.format("room") + LAUNCHER.format("returned non-zero exit status 1")
    assert told(jobs, launched) == "torch.OutOfMemoryError: no room"
    assert told(jobs, traceback.format("more")) == "torch.OutOfMemoryError: no more"
    boxed = "\u256d\u2500 Parsing error \u2500\u256e\n\u2502 rank: invalid \u2502\n\u2502 choice  \u2502\n"
    assert told(jobs, boxed, 2) == "Parsing error rank: invalid choice"
    assert told(jobs, "a last word\n") == "a last word" and told(jobs, "") == "it ended without a message"


def test_what_was_killed_is_said_to_have_been_and_by_what(tmp_path):
    jobs, bar = Jobs(tmp_path), "images:  40%|####      | 4/10\n"
    assert "out of memory" in told(jobs, bar, -signal.SIGKILL)
    assert told(jobs, bar, -signal.SIGSEGV) == "ended by signal 11 (SIGSEGV)"
    assert "SIGKILL" in told(jobs, bar + LAUNCHER.format("died with <Signals.SIGKILL: 9>"))


def test_a_training_that_fails_before_it_has_a_folder_is_in_the_list_with_its_own_words(queue, tmp_path):
    run = tmp_path / "cat" / "runs" / "early"
    code = f"print('error: fp16 needs a GPU'); print({LAUNCHER.format('returned 2')!r}); raise SystemExit(1)"
    ended(queue, add(queue, code, kind="train", target=run))
    assert find_runs(tmp_path, queue) == [run] and not run.exists()
    assert state_of(run, queue) == RunState("failed", 0, "error: fp16 needs a GPU")
    again = ended(queue, add(queue, "print('a plan')", kind="train", target=run))
    assert again.exit_code == 0 and state_of(run, queue) == RunState("planned"), "a dry run: it leaves what it printed"


def test_a_training_behind_a_preparation_that_failed_says_why(queue, tmp_path):
    data, run = tmp_path / "cat" / "dataset", tmp_path / "cat" / "runs" / "behind"
    first = add(queue, "print('error: raw is not a folder'); raise SystemExit(3)", kind="prepare", target=data)
    behind = add(queue, "print('never')", kind="train", target=run, after=first)
    assert ended(queue, behind).state == "cancelled"
    assert find_runs(tmp_path, queue) == [run]
    state = state_of(run, queue)
    assert state == RunState("cancelled", 0, "error: raw is not a folder")
    assert "The job it was waiting for failed: raw is not a folder" in progress("cat/behind", state, History(run))


def test_what_a_person_has_cancelled_is_in_no_list(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(Jobs, "ensure_worker", lambda self: None)
    job = add(queue, "print('never')", kind="train", target=tmp_path / "cat" / "runs" / "not")
    assert find_runs(tmp_path, queue) == [Path(job.target)]
    queue.cancel(job.id)
    assert find_runs(tmp_path, queue) == []


def test_the_newest_is_first_whether_it_has_written_or_not(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(Jobs, "ensure_worker", lambda self: None)
    folders = [tmp_path / "cat" / "runs" / name for name in ("old", "early", "new", "waits")]
    for folder, written in ((folders[0], 100), (folders[2], 300)):
        folder.mkdir(parents=True)
        (folder / "status.json").write_text("{}")
        os.utime(folder / "status.json", (written, written))
    early = add(queue, "x", kind="train", target=folders[1])
    queue.write(dataclasses.replace(early, state="ended", exit_code=1, ended=200.0))
    add(queue, "x", kind="train", target=folders[3])
    assert find_runs(tmp_path, queue) == folders[::-1]
