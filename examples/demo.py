"""The whole way on this machine: pictures, dataset, training, a LoRA, pictures drawn with it.

    make demo

No GPU, no download: the base is the tiny SDXL of random weights (examples/tiny_sdxl.py), so what it draws means
nothing; every file and every command is as for the full model.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from sdxl_lora.quiet import quiet_libraries

FOLDER = Path("demo")
COLOURS = {"red": (200, 40, 40), "green": (40, 160, 70), "blue": (50, 80, 200), "yellow": (230, 200, 60)}


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    draw_pictures(FOLDER / "raw")
    run("-m", "examples.tiny_sdxl", str(FOLDER / "base"))
    run(
        "-m", "preprocess", "--input_dir", str(FOLDER / "raw"), "--output_dir", str(FOLDER / "dataset"),
        "--trigger_word", "sks", "--resolution", "64", "--buckets", "off", "--caption_model", "none",
    )  # fmt: skip
    run(
        "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml", "train_sdxl_lora.py",
        "--config", "examples/demo.yaml",
    )  # fmt: skip
    draw_with_lora(FOLDER / "base", FOLDER / "run", FOLDER / "lora.png")
    print(
        f"\nLoRA      {FOLDER / 'run' / 'pytorch_lora_weights.safetensors'} (diffusers)\n"
        f"          {FOLDER / 'run' / 'demo.safetensors'} (ComfyUI, A1111, Forge, InvokeAI)\n"
        f"events    {FOLDER / 'run' / 'events.jsonl'}\n"
        f"pictures  {FOLDER / 'lora.png'} and {FOLDER / 'run' / 'samples'}"
    )


def run(*arguments: str) -> None:
    print("\n$ python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], check=True)


def draw_pictures(folder: Path) -> None:
    """Eight discs on grey, 96 x 80 px, each with a caption beside it."""
    folder.mkdir(parents=True)
    for number, (name, colour) in enumerate([*COLOURS.items(), *COLOURS.items()]):
        picture = Image.new("RGB", (96, 80), (225, 225, 225))
        radius = 20 + 2 * number
        ImageDraw.Draw(picture).ellipse((48 - radius, 40 - radius, 48 + radius, 40 + radius), fill=colour)
        picture.save(folder / f"{number}-{name}.png")
        (folder / f"{number}-{name}.txt").write_text(f"a {name} disc")


def draw_with_lora(base: Path, lora: Path, to: Path) -> None:
    """One picture with a fresh pipeline and the LoRA file, as a user of the file would draw it."""
    quiet_libraries()
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors")
    prompt, generator = "sks, a red disc", torch.Generator().manual_seed(0)
    pipeline(prompt, height=64, width=64, num_inference_steps=10, generator=generator).images[0].save(to)


if __name__ == "__main__":
    main()
