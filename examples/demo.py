"""Show the whole way on this machine: images, dataset, training, a LoRA, and an image of what it learned.

    make demo

No GPU, no download: the base is the small SDXL of examples/shapes, which draws simple shapes and has never seen the
six-armed star that the LoRA learns. All files and commands are those of the full model.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from sdxl_lora.startup import quiet_libraries

FOLDER = Path("demo")
ROOT = Path(__file__).parents[1]  # of the checkout or the installation
TRIGGER_WORD = "sks"
PROMPTS = (
    f"{TRIGGER_WORD}, a red shape on a white background",
    f"{TRIGGER_WORD}, a yellow shape on a blue background",
    f"{TRIGGER_WORD}, a purple shape on a gray background",
    "a green shape on a white background",
    "an orange circle on a blue background",
)
TRAINING_COLUMNS, DRAWN_COLUMNS = 2, 3


def main() -> None:
    quiet_libraries()
    from examples.shapes.learning import write_images

    shutil.rmtree(FOLDER, ignore_errors=True)
    images = write_images(FOLDER)
    run(
        "-m", "preprocess", "--input_dir", str(FOLDER / "raw"), "--class_images", str(FOLDER / "class"),
        "--output_dir", str(FOLDER / "dataset"), "--trigger_word", TRIGGER_WORD, "--resolution", "64",
        "--caption_model", "none",
    )  # fmt: skip
    run(
        "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml"),
        str(ROOT / "train_sdxl_lora.py"), "--config", str(ROOT / "examples" / "demo.yaml"),
        "--pretrained_model_name_or_path", str(ROOT / "examples" / "shapes" / "base"),
    )  # fmt: skip
    draw_sheet(images, FOLDER / "run", FOLDER / "lora.png")
    print(
        f"\nlook at   {FOLDER / 'lora.png'}: training images, the base, the base with the LoRA, from the same seeds\n"
        f"LoRA      {FOLDER / 'run' / 'pytorch_lora_weights.safetensors'} (diffusers)\n"
        f"          {FOLDER / 'run' / 'demo.safetensors'} (ComfyUI, A1111, Forge, InvokeAI)\n"
        f"events    {FOLDER / 'run' / 'events.jsonl'}\n"
        f"samples   {FOLDER / 'run' / 'samples'}"
    )


def run(*arguments: str) -> None:
    print("\n$ python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], check=True)


def draw_sheet(images: list[Path], lora: Path, to: Path) -> None:
    """Draw rows of prompts; the LoRA is loaded from its file into a fresh pipeline, as its users do."""
    from PIL import Image

    from examples.shapes.quality import draw_prompts, load_base
    from sdxl_lora.sampling.grid import image_grid

    prompts = [prompt for prompt in PROMPTS for _ in range(DRAWN_COLUMNS)]
    pipeline = load_base()
    base = draw_prompts(pipeline, prompts)
    pipeline.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors")
    learned = draw_prompts(pipeline, prompts)
    rows = []
    for row in range(len(PROMPTS)):
        shown = [Image.open(path) for path in images[row * TRAINING_COLUMNS :][:TRAINING_COLUMNS]]
        drawn = slice(row * DRAWN_COLUMNS, (row + 1) * DRAWN_COLUMNS)
        rows.append([*shown, *base[drawn], *learned[drawn]])
    columns = [("training images", TRAINING_COLUMNS), ("base", DRAWN_COLUMNS), ("base with the LoRA", DRAWN_COLUMNS)]
    image_grid(columns, PROMPTS, rows).save(to)


if __name__ == "__main__":
    main()
