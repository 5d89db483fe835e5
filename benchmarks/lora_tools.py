"""Measure time and memory of the LoRA tools at SDXL's full size, on random weights that it writes (7 GB of disk).

    python -m benchmarks.lora_tools --work_dir /path/with/15/GB

Prints seconds and the growth of the process's peak memory for: writing both LoRA files of rank 16, merging one into a 7
GB single file, and the SVDs that make LoRAs of DoRAs and of fine-tuned models.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.usage import peak_gib
from examples.full_sdxl import full_sdxl
from sdxl_lora.io.safetensors import write_tensors
from sdxl_lora.lora.formats.adapter import plain, svd_lora
from sdxl_lora.lora.formats.keys import canonical, is_target, to_sgm
from sdxl_lora.lora.formats.writer import save_diffusers, save_kohya
from sdxl_lora.tools.models import merge

RANK = 16


def layers_of(models: dict) -> dict:
    """Return {(component, canonical name): shape of the weight} of every linear layer and convolution."""
    return {
        (component, canonical(component, name)): tuple(layer.weight.shape)
        for component, model in models.items()
        for name, layer in model.named_modules()
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    }


def measured(what: str, call) -> None:
    before, start = peak_gib(), time.perf_counter()
    call()
    grown = peak_gib() - before
    print(f"{what}: {time.perf_counter() - start:.1f} s, peak memory +{grown:.2f} GiB", flush=True)


def write_base(path: Path, models: dict) -> None:
    """Write UNet and first encoder under the original names, and the second as weights that no LoRA touches."""
    layout = {}
    for name, weight in models["unet"].state_dict().items():
        module, _, kind = name.rpartition(".")
        sgm = to_sgm(module) if "norm" not in module else f"norms.{module}"
        layout[f"model.diffusion_model.{sgm}.{kind}"] = (torch.float16, tuple(weight.shape))
    for i, component in enumerate(("text_encoder", "text_encoder_2")):
        for name, weight in models[component].state_dict().items():
            prefix = "" if name.startswith("text_") else "text_model."
            layout[f"conditioner.embedders.{i}.transformer.{prefix}{name}"] = (torch.float16, tuple(weight.shape))
    write_tensors(path, layout, lambda name: torch.full(layout[name][1], 0.01, dtype=torch.float16), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=None)
    folder = Path(tempfile.mkdtemp(dir=parser.parse_args().work_dir))
    models = full_sdxl()
    adapters = {
        key: plain(torch.randn(RANK, shape[1]) * 0.02, torch.randn(shape[0], RANK) * 0.02, RANK)
        for key, shape in layers_of(models).items()
        if key[0] != "text_encoder_2" and is_target(key[1], "attention", True)
    }
    lora, base, merged = (folder / f"{name}.safetensors" for name in ("lora", "base", "merged"))
    try:

        def save_both():
            save_kohya(lora, adapters)
            save_diffusers(folder / "d.safetensors", adapters)

        measured(f"both files, {len(adapters)} layers of rank {RANK}", save_both)
        print(f"LoRA {lora.stat().st_size / 2**20:.0f} MiB")
        write_base(base, models)
        print(f"base {base.stat().st_size / 2**30:.2f} GiB")
        measured("merge", lambda: merge(lora, base, merged, 1.0))
        for shape in ((1280, 1280), (10240, 1280)):
            change = torch.randn(shape)
            measured(f"SVD of {shape} to rank 64", lambda change=change: svd_lora(change, 0, 64))
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


if __name__ == "__main__":
    main()
