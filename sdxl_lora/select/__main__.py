"""python -m sdxl_lora.select runs/cat: choose which checkpoint of a run to keep, and at which strength to use it.

Draws each checkpoint at several strengths, measures the images, and writes runs/cat/select/ with a table, a JSON file
and a grid, and runs/cat/<name>-recommended.safetensors. The same command again draws only missing images.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.paths import pasted_path
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError, exit_code_of
from sdxl_lora.startup import quiet_libraries

DEFAULT_STRENGTHS = (0.6, 0.8, 1.0, 1.2)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sdxl_lora.select",
        description="Which checkpoint of a run to keep, and at which strength to use it.",
    )
    parser.add_argument("run_dir", type=lambda text: Path(pasted_path(text)), help="the output_dir of a training")
    parser.add_argument("--strengths", type=float, nargs="+", default=DEFAULT_STRENGTHS, help="default: 0.6 0.8 1 1.2")
    parser.add_argument("--steps", type=int, nargs="+", default=(), help="checkpoints to compare; default: all")
    parser.add_argument(
        "--prompt",
        nargs="+",
        default=(),
        help="prompts to draw, with options as --validation_prompt has them; default: the run's own, else captions. "
        "Each that has the trigger word is drawn without it too",
    )
    parser.add_argument("--images", type=int, default=2, help="images for each prompt, by different seeds; default: 2")
    parser.add_argument(
        "--final_images",
        type=int,
        default=8,
        help="images for each prompt of the four best, which are then compared anew; 0 to compare once; default: 8",
    )
    parser.add_argument(
        "--similarity_model",
        help="vision model of transformers that says how alike images are; default: the run's; none to only draw",
    )
    parser.add_argument("--clip_model", help="CLIP that says whether images show what their prompts say; default: none")
    return parser.parse_args(argv)


def config_of(run_dir: Path) -> TrainConfig:
    """Return the run's settings with its present folder.

    Raises:
        ConfigError: there is no config.yaml.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} holds no config.yaml: name the output_dir of a training")
    return load_config(TrainConfig, ["--config", str(path), "--output_dir", str(run_dir)])


def choose(arguments: argparse.Namespace) -> None:
    """Execute the command line. Every process calls this."""
    config = config_of(arguments.run_dir)
    if arguments.images < 1:
        raise ConfigError(f"--images is {arguments.images}, it must be at least 1")
    if arguments.final_images < 0:
        raise ConfigError(f"--final_images is {arguments.final_images}, it must be at least 0")
    quiet_libraries()
    from sdxl_lora.distributed.accelerator import make_accelerator
    from sdxl_lora.run.precision import settle_precision
    from sdxl_lora.select.selection import Request, select

    config, said = settle_precision(config)
    logging = dataclasses.replace(config.logging, report_to="none")
    accelerator = make_accelerator(config.compute, config.batch, logging, config.output_dir)

    def info(text: str) -> None:
        if accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    for line in said:
        info(line)
    request = Request(
        arguments.strengths,
        arguments.steps,
        arguments.prompt,
        arguments.images,
        arguments.final_images,
        arguments.similarity_model,
        arguments.clip_model,
    )
    select(config, request, accelerator, info)
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or the exit code of an error, which is printed in one line."""
    return exit_code_of(lambda: choose(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
