"""The table of what was learned, from records made here; and what is kept of a measurement that was stopped."""

import json

import pytest

pytest.importorskip("resource", reason="the benchmarks count processor time as POSIX does")

from benchmarks import learning

BASE = {"with_trigger": 0.0, "without_trigger": 0.0, "known": 1.0}


def record(trainer, seed, step, seconds, with_trigger, at_equal_seconds=True):
    about = {"trainer": trainer, "seed": seed, "step": step, "seconds": seconds, "at_equal_seconds": at_equal_seconds}
    return about | {"with_trigger": with_trigger, "without_trigger": 0.0, "known": 1.0}


def test_the_table_has_means_and_spreads_at_the_end_and_at_equal_seconds(tmp_path):
    args = learning.parse(["--output_dir", str(tmp_path)])
    records = [record("diffusers", 0, 300, 60.0, 0.2), record("diffusers", 1, 300, 70.0, 0.4)]
    records += [record("ours, all layers", seed, 300, 80.0, 0.9, False) for seed in (0, 1)]
    records += [record("ours, all layers", seed, 250, 66.0, 0.8) for seed in (0, 1)]
    lines = learning.table(args, records, BASE).splitlines()
    assert lines[-4:] == [
        "| diffusers | 2 | 300 | 2400 | 65 | 30 % (20 to 40) | 0 % | 100 % |",
        "| ours, all layers | 2 | 300 | 2400 | 80 | 90 % | 0 % | 100 % |",
        "| diffusers, at equal seconds | 2 | 300 | 2400 | 65 | 30 % (20 to 40) | 0 % | 100 % |",
        "| ours, all layers, at equal seconds | 2 | 250 | 2000 | 66 | 80 % | 0 % | 100 % |",
    ]


def test_trainings_that_were_measured_are_not_done_again(tmp_path, monkeypatch):
    args = learning.parse(["--output_dir", str(tmp_path), "--seeds", "0", "--steps", "50", "--peer", "peer.py"])
    done = []

    def run(command, folder, args):
        done.append(folder.name)
        return {25: 30.0, 50: 60.0} if "diffusers" in folder.name else {25: 50.0, 50: 90.0}

    monkeypatch.setattr(learning, "run", run)
    monkeypatch.setattr(learning, "lora_quality", lambda lora, asked, known: BASE)
    results = learning.former_results(args) | {"base": BASE}
    results["records"].append(record("ours", 0, 50, 70.0, 0.3))
    learning.one_seed(args, tmp_path, 0, results)
    assert done == ["diffusers-0", "ours-defaults-0", "ours-all-layers-0"]
    kept = learning.former_results(args)
    steps = [(one["trainer"], one["step"], one["at_equal_seconds"]) for one in kept["records"]]
    assert steps[:3] == [("ours", 50, True), ("diffusers", 50, True), ("ours, defaults", 25, True)]
    assert steps[3] == ("ours, defaults", 50, False), "it had not ended when the peer had"
    learning.one_seed(args, tmp_path, 0, kept)
    assert len(done) == 3 and (tmp_path / "learning.png").is_file()
    with pytest.raises(SystemExit, match="measured with other settings"):
        learning.former_results(learning.parse(["--output_dir", str(tmp_path), "--rank", "8"]))
    assert json.loads((tmp_path / "learning.json").read_text())["settings"]["steps"] == 50
