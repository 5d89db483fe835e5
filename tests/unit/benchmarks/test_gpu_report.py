"""gpu.sh, which runs all measurements, and the page of tables that it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_report
from tests.helpers.paths import ROOT


def test_the_report_has_all_tables_and_what_became_of_each_training(tmp_path):
    (tmp_path / "train_speed.md").write_text("| ours |\n")
    events = {
        "fits": [{"event": "step", "images_per_second": speed} for speed in (1, 2, 4)],
        "fails": [{"event": "failed", "reason": "out of\nmemory"}],
        "killed": [{"event": "started"}],
    }
    for name, lines in events.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "fits.json").write_text('{"code": 0, "cuda_limit_gib": 6.5, "cuda_reserved_gib": 6.25}')
    (tmp_path / "fails.json").write_text('{"code": 7, "peak_rss_gib": 2}')
    (tmp_path / "refused.json").write_text('{"code": 2, "peak_rss_gib": 1}')
    for second, name in enumerate(("killed", "refused.json", "fits.json", "fails.json")):
        os.utime(tmp_path / name, (second, second))
    page = gpu_report.report(tmp_path)
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.count("|") == 9]
    assert rows[2:] == ["killed", "refused", "fits", "fails"], "in the order in which they ended"
    assert page.startswith("## train_speed\n\n| ours |\n")
    assert "| fits | 6.5 | 6.25 | - | 3 | 3 | 0 |  |" in page
    assert "| fails | - | - | 2 | 0 | - | 7 | out of memory |" in page
    assert "| refused | - | - | 1 | 0 | - | 2 |  |" in page
    assert "| killed | - | - | - | 0 | - | - | did not end |" in page


def gpu_script(folder, *arguments, **environment):
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(folder / "out"), *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PATH": paths, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_script_for_a_gpu_names_what_it_lacks(tmp_path):
    ended = gpu_script(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 2 and "torch sees no NVIDIA GPU here" in ended.stdout
    ended = gpu_script(tmp_path, tmp_path / "nowhere.py", TOY="1")
    assert ended.returncode == 2 and "nowhere.py is not a file: give the path of diffusers'" in ended.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_to_its_end_at_toy_size(tmp_path):
    """Also where a script to compare with fails."""
    peer = tmp_path / "peer.py"
    peer.write_text("raise SystemExit('this one never trains')\n")
    ended = gpu_script(tmp_path, peer, TOY="1", WORK=str(tmp_path / "work"))
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    failed = [line.split(":")[1] for line in ended.stdout.splitlines() if line.startswith(("failed:", "left out:"))]
    assert failed == [" diffusers", " diffusers, its best flags", " whole trainings beside each other"]
    page = (tmp_path / "out" / "tables.md").read_text()
    for heading in ("train_speed", "caching_speed", "step_64_batch_1", "step_64_batch_4", "step_ratios"):
        assert f"## {heading}\n" in page
    assert "| diffusers | failed: this one never trains |" in page
    rows = [line.split("|") for line in page.partition("## Trainings within")[2].splitlines() if line.count("|") == 9]
    names = ["recomputed", "recomputed_int8", "recomputed_nf4", "streamed_nf4", "streamed", "auto"]
    assert [(row[1].strip(), row[5].strip(), row[7].strip()) for row in rows[2:]] == [
        (name, "2", "0") for name in names
    ]
