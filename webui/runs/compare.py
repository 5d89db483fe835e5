"""Draw with a run's LoRA at several weights beside the base, in a process of its own.

    python -m webui.runs.compare REQUEST.yaml FOLDER

REQUEST has run, stages (the finished LoRA and checkpoints, by folder), prompts, weights, seed, steps, guidance_scale,
height and width. Images are written to FOLDER as they finish: row-<prompt>-<stage>-<weight>.png, all of the same seed.
"""

import sys
from dataclasses import replace
from pathlib import Path

import yaml

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.distributed.accelerator import make_accelerator
from sdxl_lora.errors import RUN_ERRORS
from sdxl_lora.models.loading import base_of, check_base
from sdxl_lora.select.choice import Candidate
from sdxl_lora.select.models import Painter
from webui.runs.drawings import image_path
from webui.runs.launch import read_config
from webui.runs.listing import lora_files, stages
from webui.runs.loras import stage_of


def draw(request: dict, folder: Path) -> None:
    run = Path(request["run"])
    config = read_config(TrainConfig, run / "config.yaml")
    base = base_of(config.model)
    check_base(base)
    there = stages(run)
    loras = {stage: Candidate(0, lora_files(there[stage_of(run, stage)])[0], "") for stage in request["stages"]}
    if config.adapter.use_dora:
        print("the DoRA is drawn as ComfyUI and A1111 read it: as a LoRA close to it", flush=True)
    prompts = request["prompts"]
    asked = {name: request[name] for name in ("height", "width", "seed", "steps", "guidance_scale")}
    logging = replace(config.logging, report_to="none")
    accelerator = make_accelerator(config.compute, config.batch, logging, config.output_dir)
    first = next(iter(loras.values()))
    painter = Painter(config, base, first, ["", *prompts], accelerator, lambda text: print(text, flush=True))

    def draw_prompts(stage: str, weight: float) -> None:
        painter.set_strength(weight)
        for number, prompt in enumerate(prompts):
            painter.paint(SamplePrompt(prompt, **asked), 0).save(image_path(folder, number, stage, weight))
            print(f"prompt {number + 1}, {stage or 'base'}, weight {weight:g}", flush=True)

    draw_prompts("", 0.0)
    for stage, lora in loras.items():
        painter.put_on(lora)
        for weight in request["weights"]:
            draw_prompts(stage, weight)


if __name__ == "__main__":
    try:
        draw(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
