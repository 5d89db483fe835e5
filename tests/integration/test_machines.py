"""Several machines: two network namespaces with a cable between them, each with a host name of its own."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.run.checkpoints import checkpoints, problem_with
from sdxl_lora.run.events import read_events
from sdxl_lora.run.status import read_status
from tests.helpers.launch import Launched
from tests.helpers.machines import two_machines, why_not
from tests.helpers.paths import ROOT


@pytest.fixture
def machines():
    if reason := why_not():
        pytest.skip(reason)
    with two_machines() as both:
        yield both


def wait_for(is_so, seconds=90, what="the run does not get to its steps"):
    until = time.time() + seconds
    while not is_so():
        assert time.time() < until, what
        time.sleep(0.05)


def steps_of(folder):
    log = folder / "events.jsonl"
    return [event["step"] for event in read_events(log, "step")] if log.exists() else []


TIMEOUT = 6


def test_a_machine_that_is_cut_off_is_named_in_time_and_the_run_goes_on_afterwards(train_config, tmp_path, machines):
    run = tmp_path / "run"
    settings = {"process_timeout_seconds": TIMEOUT, "checkpointing_steps": 2, "checkpoints_total_limit": 2}
    launched = Launched(train_config(**settings, max_train_steps=100_000), tmp_path / "log", machines=machines)
    wait_for(lambda: len(steps_of(run)) >= 3)
    machines[1].cut()
    assert launched.wait(60) == [8, 8], launched.printed()
    words = launched.printed()
    for rank, other in ((0, 1), (1, 0)):
        line = rf"error: rank {other} does not answer \(last seen at step \d+ on {machines[other].name}\); "
        assert re.search(line + f"rank {rank} ends at step", words), words
    assert "The same command goes on from the newest checkpoint" in words and "Traceback" not in words

    machines[1].mend()
    saved = checkpoints(run)
    assert saved and all(problem_with(path) is None for path in saved)
    done = int(saved[-1].name.split("-")[1])
    launched = Launched(train_config(**settings, max_train_steps=done + 3), tmp_path / "log 2", machines=machines)
    assert launched.wait() == [0, 0], launched.printed()
    assert f"going on after step {done}" in launched.printed()
    assert steps_of(run)[-3:] == [done + 1, done + 2, done + 3]


def upload_for_ever():
    """In a process that is about to train: the main process is busy with its pictures, and says so."""
    from sdxl_lora.training import samples

    def read_samples(*_):
        Path(os.environ["BUSY"]).touch()
        time.sleep(600)

    if os.environ["RANK"] == "0":
        samples.read_samples = read_samples


def test_a_machine_that_is_cut_off_while_it_waits_for_an_upload_ends_in_time(train_config, tmp_path, machines):
    """The one that uploads has nobody to wait for; it finds out when it is done."""
    config = train_config(
        process_timeout_seconds=TIMEOUT, max_train_steps=2, validation_prompt=("a cat",), num_validation_images=1,
        validation_inference_steps=1,
    )  # fmt: skip
    busy = tmp_path / "busy"
    launched = Launched(config, tmp_path / "log", machines=machines, first=upload_for_ever, BUSY=str(busy))
    wait_for(busy.exists)
    time.sleep(2 * TIMEOUT)
    assert all(process.is_alive() for process in launched.processes), "beyond the timeout, patiently"
    machines[1].cut()
    launched.processes[1].join(3 * TIMEOUT + 20)
    launched.processes[0].kill()
    assert launched.processes[1].exitcode == 8, launched.printed()
    assert "rank 0 does not answer" in launched.printed()


@pytest.mark.slow
def test_launchers_on_two_machines_train_one_run(train_config, tmp_path, machines):
    """The README's command on each, with the launch file for several machines."""
    run, file = tmp_path / "run", tmp_path / "run.yaml"
    file.write_text(to_yaml(train_config(max_train_steps=4, output_dir=str(run))))
    launchers, logs = [], [tmp_path / "log 0", tmp_path / "log 1"]
    for rank, machine in enumerate(machines):
        command = machine.command(
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/multi_node.yaml",
            "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip",
            machines[0].address, "--max_restarts", "3", "train_sdxl_lora.py", "--config", str(file),
        )  # fmt: skip
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        with open(logs[rank], "w", encoding="utf-8") as log:
            launchers.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    env={**environment, "GLOO_SOCKET_IFNAME": machine.device},
                )
            )
    codes = [launcher.wait(300) for launcher in launchers]
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    assert steps_of(run) == [1, 2, 3, 4]
    hosts = {read_status(run, rank)["host"] for rank in (0, 1)}
    assert hosts == {machine.name for machine in machines}
