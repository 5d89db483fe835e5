"""Plan of a training before it starts: steps, time and memory, from the dry run's own planning.

    python -m webui.figures.plan CONFIG.yaml

prints it as JSON. This is a process of its own, since planning imports torch and the page does not.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import RUN_ERRORS, ConfigError
from webui.runs.jobs import ROOT
from webui.runs.launch import read_config, write_config

SECONDS = 300  # importing torch and reading image sizes take ten on an idle machine
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """Estimate of a training.

    Attributes:
        images: number of training images, without those held out.
        uses: times that each image is used.
        gib: GPU memory while training.
        seconds: the least time by device: the one measured, else known cards.
        drawings: sample images in all.
        warnings: the dry run's warnings, in English.
    """

    steps: int
    images_per_step: int
    images: int
    uses: float
    gib: float
    seconds: dict[str, float]
    drawings: int
    warnings: list[str]


def plan_of(config: TrainConfig, processes: int = 1, is_busy: bool = False) -> Plan:
    """Plan a training in another process, which takes some seconds.

    Args:
        is_busy: another training uses the GPU; it is then left alone, and times are given for known cards.
    Raises:
        ConfigError: the error that would end the training itself.
    """
    environment = {**os.environ, "PYTHONUTF8": "1"}
    if processes > 1:
        environment["WORLD_SIZE"] = str(processes)  # as a launcher does
    if is_busy:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(prefix="sdxl-lora-plan-") as folder:
        path = write_config(dataclasses.replace(config, dry_run=True), Path(folder))
        command = [sys.executable, "-m", "webui.figures.plan", str(path)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"planning takes longer than {SECONDS} seconds: try again, or train without a plan"
            ) from None
    if done.returncode:
        raise ConfigError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return Plan(**json.loads(done.stdout.splitlines()[-1]))


def planned(config: TrainConfig) -> Plan:
    """Return the plan, in a process that may import torch."""
    from sdxl_lora.performance.memory_budget import memory_level_of
    from sdxl_lora.training.dry_run import plan_training
    from sdxl_lora.training.schedule import Cadence

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        plan = plan_training(config)
        data, work = plan.data, plan.work()
        if plan.device is None:
            seconds = work.seconds_on_known_cards()
        else:
            seconds = {str(plan.device.type): sum(work.seconds(*plan.rates()).values())}
    level = memory_level_of(plan.config.compute, plan.config.optimizer)
    parts = plan.count.parts(level, plan.shape.micro_batch)
    images = len(data.examples) - len(data.held_out)
    drawn = len(data.prompts) * plan.config.evaluation.num_validation_images
    return Plan(
        steps=data.total_steps,
        images_per_step=data.images_per_step,
        images=images,
        uses=data.total_steps * data.images_per_step / images,
        gib=sum(parts.values()) / GIB,
        seconds=seconds,
        drawings=drawn * Cadence(plan.config, data).to_come(0).evaluations if drawn else 0,
        warnings=[str(one.message) for one in warned if one.category is UserWarning],
    )


def main() -> int:
    try:
        print(json.dumps(dataclasses.asdict(planned(read_config(TrainConfig, Path(sys.argv[1]))))))
    except RUN_ERRORS as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
