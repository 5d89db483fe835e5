"""Trainings beside each other: what fails is listed and stops no other."""

import json

import pytest

from benchmarks import train_speed


def record(seconds):
    numbers = ("cpu_seconds_per_step", "start_seconds", "wall_seconds", "cache_seconds", "peak_gib")
    return {"seconds": [seconds] * 4, **dict.fromkeys(numbers, 1.0)}


@pytest.fixture
def measure(monkeypatch, tmp_path, capsys):
    """A function from what each training does, by its flags, to the command's exit, its table and what it printed."""
    monkeypatch.setattr(train_speed, "save_base", lambda *_: tmp_path)
    monkeypatch.setattr(train_speed, "write_images", lambda *_: tmp_path)
    monkeypatch.setattr(train_speed, "measured_peaks", lambda *_: {"flops_per_second": 1e9, "bytes_per_second": 1e9})
    monkeypatch.setattr(train_speed, "step_flops", lambda *_, **__: {"step": 1e9, "weights": 1, "parameters": 1})

    def command(trainings, *flags):
        def run(args, script, further, *_):
            found = trainings[" ".join(further)]
            if isinstance(found, Exception):
                raise found
            return record(found)

        monkeypatch.setattr(train_speed, "run", run)
        code = 0
        try:
            train_speed.main(["--output_dir", str(tmp_path / "out"), "--rounds", "2", *flags])
        except SystemExit as end:
            code = end.code
        return code, (tmp_path / "out" / "train_speed.md").read_text(), capsys.readouterr().out

    return command


def test_a_training_that_fails_is_listed_and_stops_no_other(measure, tmp_path):
    broken = RuntimeError("train.py ended with 7 after 0 steps:\nmany lines\nerror: no room")
    trainings = {"": 0.5, "--a": broken, "--b": 0.25}
    code, table, said = measure(trainings, "--variant", "a=--a", "--variant", "b=--b")
    assert code == "failed: a"
    assert "| ours | 0.5000 | 0.5000-0.5000 | 1.00 |" in table and "| b | 0.2500 | 0.2500-0.2500 | 0.50 |" in table
    assert "| a | failed: error: no room |" in table
    assert said.count("left out: diffusers' script, since --peer gives no path") == 1
    result = json.loads((tmp_path / "out" / "train_speed.json").read_text())
    assert len(result["records"]) == 4 and (tmp_path / "out" / "train_speed.png").is_file()


def test_the_others_are_shown_where_ours_fails(measure, tmp_path):
    peer = tmp_path / "peer.py"
    peer.touch()
    trainings = {"": RuntimeError("gone"), "--b": 0.25}
    code, table, said = measure(trainings, "--peer", str(peer), "--peer_variant", "best=--b")
    assert code == "failed: ours, diffusers" and "| best | 0.2500 | 0.2500-0.2500 | nan |" in table
    assert "left out" not in said


def test_a_peer_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_speed.parse(["--peer", "nowhere.py"])
    assert "--peer: nowhere.py is not a file" in capsys.readouterr().err
