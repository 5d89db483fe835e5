"""Records of the images of each step, by every process: equal for equal trainings, however their work is split."""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path

DRAWN = ("latents", "noise", "time_ids", "prompt_embeds", "pooled_embeds", "loss_weight")


def note_what_is_met():
    """Make the training of this process add a line for each image of each step to the file MET.<rank>."""
    from sdxl_lora.training.train_step import TrainStep

    do, rank = TrainStep.__call__, os.environ.get("RANK", "0")

    def noting(self, batch, step, learning_rate):
        with open(f"{os.environ['MET']}.{rank}", "a", encoding="utf-8") as file:
            for counts, tensors in batch.micro_batches:
                for row in range(len(tensors["timesteps"]) if counts else 0):
                    drawn = b"".join(tensors[name][row].numpy().tobytes() for name in DRAWN)
                    met = [hashlib.sha256(drawn).hexdigest(), tensors["timesteps"][row].item()]
                    file.write(json.dumps([step + 1, batch.image_count, learning_rate, *met]) + "\n")
        do(self, batch, step, learning_rate)

    TrainStep.__call__ = noting


def met(noted: Path) -> dict[int, list]:
    """Return by step, sorted: (images of the step, learning rate, hash of the draws, timestep)."""
    steps = defaultdict(list)
    for file in noted.parent.glob(f"{noted.name}.*"):
        for line in file.read_text().splitlines():
            number, *of_image = json.loads(line)
            steps[number].append(tuple(of_image))
    return {number: sorted(of_step) for number, of_step in steps.items()}
