"""Processes started again: Slurm's queue after a preemption, torchrun after a death. Through the real launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.run.checkpoints import checkpoints, problem_with
from sdxl_lora.run.events import read_events
from sdxl_lora.run.status import read_status
from tests.helpers.launch import free_port
from tests.helpers.marks import slow
from tests.helpers.paths import ROOT

SRUN = """#!/bin/bash
# The command once for each node, all of them this machine.
nodes=1 launched=
while [[ $1 == --* ]]; do case $1 in --nodes=*) nodes=${1#*=} ;; esac; shift; done
for ((node = 0; node < nodes; node++)); do SLURM_NODEID=$node "$@" & launched="$launched $!"; done
code=0
for one in $launched; do wait "$one" || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
case $1 in show) echo 127.0.0.1 ;; *) echo "$@" >> "$TOLD_SLURM" ;; esac
"""


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job, of a Slurm that notes what it is told in tmp_path/told."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TOLD_SLURM": str(tmp_path / "told"),
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-2]",
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.fixture
def start():
    """A function that starts a command, its words in the file `printed`; after a test nothing of it runs on."""
    started = []

    def begin(command, environment, printed: Path):
        with open(printed, "w", encoding="utf-8") as file:
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def steps_of(run):
    return [event["step"] for event in read_events(run / "events.jsonl", "step")] if run.exists() else []


def wait_for(is_so, process, printed, seconds=150):
    until = time.time() + seconds
    while not is_so():
        assert time.time() < until and process.poll() is None, printed.read_text()
        time.sleep(0.1)


def worker(process, rank):
    """The training process of a rank under a launcher."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if any("train_sdxl_lora.py" in word for word in child.cmdline()) and child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process of rank {rank}")


def kill_at(step, rank, process, run, printed):
    wait_for(lambda: (run / "events.jsonl").exists() and steps_of(run)[-1:] >= [step], process, printed)
    worker(process, rank).kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    "nodes, asks",
    [
        (1, signal.SIGUSR1),
        (1, signal.SIGTERM),
        (2, signal.SIGTERM),
    ],
)
def test_a_job_that_must_leave_saves_and_goes_on_from_the_queue(train_config, tmp_path, slurm, start, nodes, asks):
    """Asked to leave, queued again, and there to its end; of two machines one loses its process on the way."""
    run, printed = tmp_path / "run", tmp_path / "printed"
    settings = train_config(max_train_steps=40, checkpointing_steps=5, output_dir="given by the command")
    (tmp_path / "run.yaml").write_text(to_yaml(settings))
    command = ["bash", "examples/slurm.sh", str(run), "--config", str(tmp_path / "run.yaml")]
    slurm["SLURM_NNODES"] = str(nodes)
    job = start(command, slurm, printed)
    wait_for(lambda: (run / "events.jsonl").exists() and steps_of(run)[-1:] >= [2], job, printed)
    job.send_signal(asks)
    assert job.wait(60) == 0, printed.read_text()
    assert (tmp_path / "told").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    status = read_status(run)
    assert status["state"] == "stopped" and status["step"] < 40
    assert problem_with(run / status["last_checkpoint"]) is None

    job = start(command, slurm, printed)
    if nodes > 1:
        kill_at(min(status["step"] + 8, 38), 1, job, run, printed)
    assert job.wait(150) == 0, printed.read_text()
    assert read_status(run)["state"] == "done" and checkpoints(run)[-1].name == "checkpoint-40"
    starts = [event["step"] for event in read_events(run / "events.jsonl", "started")]
    assert starts[:2] == [0, status["step"]]
    if nodes > 1:
        assert len(starts) == 3 and starts[2] % 5 == 0 and starts[2] > starts[1]
    assert (tmp_path / "told").read_text().count("requeue") == 1, "a run that is done does not come back"


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--rdzv_backend", "c10d")], ids=["as it comes", "c10d"])
def test_killed_processes_of_one_machine_start_again_by_themselves(train_config, tmp_path, start, more):
    run, printed = tmp_path / "run", tmp_path / "printed"
    (tmp_path / "run.yaml").write_text(to_yaml(train_config(max_train_steps=60, checkpointing_steps=5)))
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", "accelerate_configs/cpu_two_processes.yaml", "--main_process_port", free_port(),
        "--max_restarts", "2", *more,
        "train_sdxl_lora.py", "--config", str(tmp_path / "run.yaml"),
    ]  # fmt: skip
    launcher = start(command, {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, printed)
    for rank, step in ((1, 8), (0, 28)):
        kill_at(step, rank, launcher, run, printed)
    assert launcher.wait(150) == 0, printed.read_text()
    starts = [event["step"] for event in read_events(run / "events.jsonl", "started")]
    assert len(starts) == 3 and 5 <= starts[1] < 28 and starts[2] >= 25 and not any(step % 5 for step in starts)
    assert checkpoints(run)[-1].name == "checkpoint-60"


LAUNCHER = ["-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]


@pytest.mark.parametrize("launcher", [[], *slow(LAUNCHER)], ids=["alone", "launched"])
def test_our_line_is_the_last_and_nothing_is_left_of_a_refused_command(tmp_path, captioned_photographs, launcher):
    run = tmp_path / "run"
    command = [sys.executable, *launcher, "train_sdxl_lora.py", "--train_data_dir", captioned_photographs]
    command += ["--output_dir", run, "--pretrained_model_name_or_path", "nowhere.safetensors"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1] == "error: no such base model: nowhere.safetensors"
    assert done.returncode == (1 if launcher else 2), "a launcher knows 1 alone, as docs/checkpoints.md says"
    assert not run.exists()
