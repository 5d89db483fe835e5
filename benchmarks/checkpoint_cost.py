"""Measure the time that saving adds to a training, at the default interval.

    python -m benchmarks.checkpoint_cost --output benchmarks/results/checkpoint_cost.json

Trains the tiny SDXL for --steps with a checkpoint every --every steps and reads the times of steps from events.jsonl. A
save takes what the step after it lasted beyond the median. The share is for the default of 500 steps: it shrinks with
slower steps, and no model has faster ones than this.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from sdxl_lora.config.sections.run import CheckpointConfig
from sdxl_lora.run.events import read_events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.steps, arguments.every)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def measure(folder: Path, steps: int, every: int) -> dict:
    (folder / "raw").mkdir()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "raw" / "red.png")
    (folder / "raw" / "red.txt").write_text("red")
    subprocess.run([sys.executable, "-m", "examples.tiny_sdxl", str(folder / "base")], check=True)
    command = [
        sys.executable, "train_sdxl_lora.py", "--pretrained_model_name_or_path", folder / "base", "--train_data_dir",
        folder / "raw", "--output_dir", folder / "run", "--resolution", "64", "--mixed_precision", "no", "--report_to",
        "none", "--max_train_steps", steps, "--checkpointing_steps", every, "--checkpoints_total_limit", "2",
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True)
    times = {event["step"]: event["time"] for event in read_events(folder / "run" / "events.jsonl", "step")}
    lasted = {step: times[step] - times[step - 1] for step in range(2, steps + 1)}
    step_seconds = statistics.median(seconds for step, seconds in lasted.items() if step % every != 1)
    save_seconds = statistics.median(lasted[step] for step in lasted if step % every == 1) - step_seconds
    interval = CheckpointConfig.checkpointing_steps
    return {
        "command": f"python -m benchmarks.checkpoint_cost --steps {steps} --every {every}",
        "step_seconds": round(step_seconds, 4),
        "save_seconds": round(save_seconds, 4),
        "share_of_the_run_at_the_default_interval": round(save_seconds / (interval * step_seconds), 5),
    }


if __name__ == "__main__":
    main()
