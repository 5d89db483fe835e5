"""A finished run, written to its folder without a training."""

import json
import math

from PIL import Image

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.run.events import EventLog
from tests.helpers.configs import flat_train_config

STEPS = 300


def make_run(projects, name: str, **settings):
    run = projects / "cat" / "runs" / name
    (run / "samples").mkdir(parents=True)
    config = flat_train_config(str(run), train_data_dir="data", validation_prompt=("sks, a cat",), **settings)
    (run / "config.yaml").write_text(to_yaml(config))
    log = EventLog(run / "events.jsonl")
    log.write("started", total_steps=STEPS)
    for step in range(1, STEPS + 1):
        loss = 0.1 + math.exp(-step / 90) * (0.6 + 0.3 * math.sin(step * 7.7)) * settings.get("rank", 16) / 16
        rates = {"learning_rate": 1e-4 * (1 - step / STEPS), "grad_norm": loss * 2, "loss_timesteps_0_499": loss / 2}
        log.write("step", step=step, loss=loss, loss_timesteps_500_999=loss * 1.5, epoch=step / 20, **rates)
        if step % 50 == 0:
            log.write("validation", step=step, validation_loss=loss * 1.1)
    Image.new("RGB", (64, 64), (0, 99, 200)).save(run / "samples" / f"step-{STEPS:06}-prompt-0-image-0.png")
    (run / "status.json").write_text(json.dumps({"state": "done", "step": STEPS}))
    return run
