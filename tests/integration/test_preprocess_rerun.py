"""A second run: nothing done twice, nothing of a person's work lost, and a kill at any point is survived."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.jobs.processes import Team
from preprocess.jobs.state import locked
from sdxl_lora.errors import ConfigError
from tests.helpers.preparing import edit, noise, opened, preprocess, report_of, rows_of, snapshot, texts_of, write_rows


@pytest.fixture
def raw(tmp_path):
    """A folder with four pictures of which two have captions."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, name in enumerate("abcd"):
        noise(seed=seed).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a first thing")
    (folder / "b.txt").write_text("a second thing")
    return folder


def test_a_second_run_touches_no_picture(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    before, rows = snapshot(out / "images"), rows_of(out)
    assert preprocess(raw, out) == 0
    assert snapshot(out / "images") == before and rows_of(out) == rows
    assert report_of(out)["counts"]["new_crops"] == 0


def test_only_new_and_changed_pictures_are_done(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    before = snapshot(out / "images")
    noise(seed=50).save(raw / "new.png")
    noise(seed=51).save(raw / "c.png")
    (raw / "d.png").unlink()
    assert preprocess(raw, out) == 0
    report, after = report_of(out), snapshot(out / "images")
    assert report["counts"]["new_crops"] == 2 and report["gone"] == ["d.png"]
    assert sorted(texts_of(out)) == ["a.png", "b.png", "c.png", "new.png"]
    assert {f"images/{name}" for name in after} == {row["file_name"] for row in rows_of(out)}
    assert sum(before.get(name) == value for name, value in after.items()) == 2
    assert len(opened(out, tmp_path)) == 4


def test_edited_captions_stay_and_others_follow_their_files(raw, tmp_path):
    out = tmp_path / "out"
    flags = ["--trigger_word", "sks", "--fallback_caption", "something"]
    assert preprocess(raw, out, *flags) == 0
    edit(out, "a.png", "my own words, sks")
    edit(out, "d.png", "")
    (raw / "b.txt").write_text("a changed thing")
    assert preprocess(raw, out, *flags) == 0
    expected = {"a.png": "my own words, sks", "b.png": "sks, a changed thing", "c.png": "sks, something", "d.png": ""}
    assert texts_of(out) == expected
    assert preprocess(raw, out, "--trigger_word", "ohwx") == 0  # and so again, with another word and other sizes
    assert texts_of(out)["a.png"] == "my own words, sks" and texts_of(out)["b.png"] == "ohwx, a changed thing"
    assert preprocess(raw, out, *flags, resolution=48) == 0
    assert texts_of(out) == expected
    assert {row["text_from"] for row in report_of(out)["rows"]} >= {"metadata.jsonl, edited by hand", "b.txt"}


def test_recaption_makes_all_anew_and_keeps_the_old_rows(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    edit(out, "a.png", "my own words")
    assert preprocess(raw, out, "--recaption") == 0
    assert texts_of(out)["a.png"] == "a first thing"
    edit(out, "b.png", "other words")
    assert preprocess(raw, out, "--recaption") == 0
    kept = [json.loads(line)["text"] for line in (out / ".preprocess" / "before_recaption.jsonl").open()]
    assert kept.count("my own words") == kept.count("other words") == 1 and kept.count("a first thing") == 1


def test_an_edited_caption_survives_a_changed_a_renamed_and_an_absent_picture(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    for name in "abc":
        edit(out, f"{name}.png", f"my words for {name}")
    noise(seed=60).save(raw / "a.png")
    (raw / "b.png").rename(raw / "renamed.png")
    (raw / "b.txt").unlink()
    (raw / "c.png").rename(tmp_path / "c.png")
    assert preprocess(raw, out) == 0
    assert texts_of(out) == {"a.png": "my words for a", "d.png": "", "renamed.png": "my words for b"}
    (tmp_path / "c.png").rename(raw / "c.png")
    assert preprocess(raw, out) == 0
    assert texts_of(out)["c.png"] == "my words for c"


def test_a_deleted_line_stays_deleted_until_asked_for(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    write_rows(out, [row for row in rows_of(out) if row["source"] != "b.png"])
    assert preprocess(raw, out) == 0
    assert "b.png" not in texts_of(out)
    assert "deleted from metadata.jsonl" in report_of(out)["left_out"][0]["reason"]
    assert preprocess(raw, out) == 0 and "b.png" not in texts_of(out)
    assert preprocess(raw, out, "--restore_deleted") == 0 and texts_of(out)["b.png"] == "a second thing"


def test_a_deleted_line_stays_deleted_when_its_picture_was_left_out_meanwhile(raw, tmp_path):
    """One whose line was there comes back; its name in leave_out is all that kept it away."""
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    write_rows(out, [row for row in rows_of(out) if row["source"] != "b.png"])
    for _ in range(2):
        assert preprocess(raw, out, "--leave_out", "b.png", "c.png") == 0
        assert list(texts_of(out)) == ["a.png", "d.png"]
    assert preprocess(raw, out) == 0 and list(texts_of(out)) == ["a.png", "c.png", "d.png"]
    assert preprocess(raw, out, "--restore_deleted", "--leave_out", "b.png") == 0
    assert preprocess(raw, out) == 0 and texts_of(out)["b.png"] == "a second thing"


def test_columns_that_a_person_added_stay(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    write_rows(out, [row | {"rating": number} for number, row in enumerate(rows_of(out))])
    noise(seed=70).save(raw / "e.png")
    assert preprocess(raw, out) == 0
    assert [row["rating"] for row in rows_of(out)] == [0, 1, 2, 3, None]
    assert opened(out, tmp_path)["rating"] == [0, 1, 2, 3, None]


def test_a_line_that_a_person_broke_stops_the_run_and_changes_nothing(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    text = (out / "metadata.jsonl").read_text().replace('"text": "a second thing"', '"text": "a "second" thing"')
    (out / "metadata.jsonl").write_text(text)
    assert preprocess(raw, out) == 3
    assert "metadata.jsonl:2:" in capsys.readouterr().err and (out / "metadata.jsonl").read_text() == text


def test_a_damaged_or_missing_crop_is_made_again(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    whole = snapshot(out / "images")
    first, second = sorted((out / "images").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    assert preprocess(raw, out) == 0
    after = snapshot(out / "images")
    assert {name: content for name, (content, _) in after.items()} == {n: content for n, (content, _) in whole.items()}


class Killed(BaseException):
    """Stands for kill -9: nothing after it is executed in the run, not even an `except Exception`."""


def count_steps(monkeypatch, limit):
    """Lets `limit` changes of the file system through, and kills the run at the next."""
    steps = []

    def counted(function):
        def call(*args, **kwargs):
            if len(steps) >= limit:
                raise Killed
            steps.append(function.__name__)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    return steps


def state_of(out, tmp_path):
    """What a trainer would find: "nothing", or the rows whose pictures all decode; anything else fails the test."""
    if not (out / "metadata.jsonl").exists():
        assert not (out / "images").exists(), "images without captions look like a dataset"
        return "nothing"
    if not (out / "images").exists():
        with pytest.raises(FileNotFoundError):
            list(opened(out, tmp_path))
        return "nothing"
    data = opened(out, tmp_path)
    return [(example["text"], example["source"], example["image"].tobytes()) for example in data]


def test_a_kill_at_any_point_leaves_the_old_dataset_or_the_new_one(raw, tmp_path, monkeypatch):
    def run(out, limit=10_000, flags=()):
        with monkeypatch.context() as patch:
            steps = count_steps(patch, limit)
            try:
                assert preprocess(raw, out, *flags) == 0
            except Killed:
                return None
        return len(steps)

    first = tmp_path / "first"
    total = run(first)
    whole = state_of(first, tmp_path)
    for limit in range(total):
        out = tmp_path / f"first-{limit}"
        assert run(out, limit) is None
        assert state_of(out, tmp_path) in ("nothing", whole)
        assert run(out) is not None and state_of(out, tmp_path) == whole

    edit(first, "c.png", "my words")
    old = state_of(first, tmp_path)
    noise(seed=80).save(raw / "a.png")
    (raw / "d.png").unlink()
    flags = ["--trigger_word", "sks"]
    total = run(shutil.copytree(first, tmp_path / "second"), flags=flags)
    new = state_of(tmp_path / "second", tmp_path)
    assert [text for text, *_ in new] == ["sks, a first thing", "sks, a second thing", "my words"]
    for limit in range(total):
        out = shutil.copytree(first, tmp_path / f"second-{limit}")
        assert run(out, limit, flags) is None
        assert state_of(out, tmp_path) in (old, new)
        assert run(out, flags=flags) is not None and state_of(out, tmp_path) == new
        assert {f"images/{p.name}" for p in (out / "images").iterdir()} == {r["file_name"] for r in rows_of(out)}


def test_a_run_that_is_killed_for_real_goes_on(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for seed in range(40):
        noise(400, 320, seed=seed).save(raw / f"{seed}.png")
    flags = ["--input_dir", raw, "--output_dir", out, "--resolution", "256", "--caption_model", "none"]
    command = [sys.executable, "-m", "preprocess", *flags, "--num_workers", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    staged = out / ".preprocess" / "pictures"
    while process.poll() is None and (not staged.exists() or len(list(staged.glob("*.json"))) < 10):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "metadata.jsonl").exists() and not (out / "images").exists()
    assert preprocess(raw, out, "--bucket_step", "64", resolution=256) == 0
    assert report_of(out)["counts"]["new_crops"] <= 30 and len(opened(out, tmp_path)) == 40


def test_two_runs_in_one_folder_are_refused_with_the_first_ones_process(raw, tmp_path, capsys):
    with locked(tmp_path / "out", Team()):
        assert preprocess(raw, tmp_path / "out") == 2
    assert f"another preprocess (pid {os.getpid()}) is writing" in capsys.readouterr().err
    assert preprocess(raw, tmp_path / "out") == 0
    with pytest.raises(ConfigError), locked(tmp_path / "out", Team()), locked(tmp_path / "out", Team()):
        pass


@pytest.mark.parametrize(
    "name, content",
    [
        ("written.json", '{"publ'),
        ("written.json", ""),
        ("written.json", "[]"),
        ("written.json", '{"published": 5}'),
        ("written.json", '{"published": {"a.png": 5}}'),
        ("written.json", '{"old_files": {}}'),
        ("pictures", "{"),
        ("pictures", "[]"),
        ("pictures", "5"),
        ("pictures", '[{"a": 1}]'),
        ("removed.jsonl", "{half of a line"),
        ("removed.jsonl", '[1]\n{"text": 5}\n'),
    ],
)
def test_damaged_bookkeeping_is_made_anew_and_named(name, content, raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    edit(out, "c.png", "my own words")
    before = texts_of(out)
    path = out / ".preprocess" / name
    for file in path.iterdir() if path.is_dir() else [path]:
        file.write_text(content)
    capsys.readouterr()
    assert preprocess(raw, out) == 0
    assert texts_of(out) == before and "was damaged" in capsys.readouterr().out
    assert preprocess(raw, out) == 0 and "was damaged" not in capsys.readouterr().out


def test_what_can_be_read_of_removed_rows_is_kept(raw, tmp_path):
    out = tmp_path / "out"
    assert preprocess(raw, out) == 0
    edit(out, "c.png", "my words for c")
    (raw / "c.png").rename(tmp_path / "c.png")
    assert preprocess(raw, out) == 0
    with (out / ".preprocess" / "removed.jsonl").open("a") as file:
        file.write('{"half of a')
    assert preprocess(raw, out) == 0
    assert "half of a" in (out / ".preprocess" / "removed.damaged.jsonl").read_text()
    (tmp_path / "c.png").rename(raw / "c.png")
    assert preprocess(raw, out) == 0 and texts_of(out)["c.png"] == "my words for c"
