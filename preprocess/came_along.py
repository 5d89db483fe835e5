"""python -m preprocess.came_along runs/cat: find, in captions, what a LoRA draws without being prompted.

It captions the images drawn by `python -m sdxl_lora.select`, those of the base beside them and the training images, and
writes runs/cat/select/came_along.txt and .json. The words are counted by sdxl_lora/select/words.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from preprocess.captions.caption_plan import Caption, OneCaptioner
from sdxl_lora.config.paths import pasted_path
from sdxl_lora.config.sections.preprocess import CaptionerConfig, TaggerConfig
from sdxl_lora.errors import ConfigError, exit_code_of
from sdxl_lora.packages import explain_failed_imports
from sdxl_lora.startup import quiet_libraries


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.came_along",
        description="What a LoRA draws that no prompt asked for, in words and percent.",
    )
    parser.add_argument("run_dir", type=lambda text: Path(pasted_path(text)), help="a run that select has drawn from")
    parser.add_argument(
        "--caption_model",
        default=CaptionerConfig().models[0],
        help="a captioner or a tagger, as `python -m preprocess` has it; default: %(default)s",
    )
    parser.add_argument("--step", type=int, help="the checkpoint to look at; default: the recommended one")
    parser.add_argument("--strength", type=float, help="the strength to look at; default: the recommended one")
    return parser.parse_args(argv)


def look(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        ConfigError, DataError: see sdxl_lora/select/along.py; also a captioner that cannot be used.
    """
    quiet_libraries()
    from sdxl_lora.select.__main__ import config_of
    from sdxl_lora.select.along import Drawn, report_on
    from sdxl_lora.select.words import words_of_caption, words_of_tags

    config = config_of(arguments.run_dir)
    Drawn(config, arguments.step, arguments.strength)  # before a model is loaded
    if arguments.caption_model == "none":
        raise ConfigError("caption_model is none, it must be a captioner or a tagger: the words come from it")
    captioner = OneCaptioner(CaptionerConfig(caption_model=(pasted_path(arguments.caption_model),)), TaggerConfig())
    captioner.check()
    words_of = words_of_tags if captioner.is_tagger else words_of_caption
    with captioner.load() as caption:

        def describe(images: Sequence[Image.Image]) -> list[frozenset[str]]:
            return [words_of(text) for text in in_batches(caption, images)]

        text, paths = report_on(config, describe, arguments.step, arguments.strength)
    print(text, end="")
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)


def in_batches(caption: Caption, images: Sequence[Image.Image]) -> list[str]:
    """Return the captions of images, taken in batches of the size that the captioner asks for."""
    texts: list[str] = []
    while len(texts) < len(images):
        texts += caption(list(images[len(texts) :][: caption.batch_size]))
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or the exit code of a failure, which is printed in one line."""
    explain_failed_imports()
    return exit_code_of(lambda: look(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
