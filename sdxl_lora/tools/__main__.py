"""Command line of the LoRA tools."""

import sys
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional as Given

from sdxl_lora.config.paths import pasted_path
from sdxl_lora.packages import explain_failed_imports

Precision = Literal["fp16", "bf16", "fp32"]


def show(
    model: Given[str],
    keys: bool = False,
    configs: str | None = None,
    vae: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> int:
    """Describe a LoRA or a base model. For a LoRA: ranks, alphas, size of the change per block, metadata, clients that
    load it. For a base, without loading it: kind, prediction, VAE, precision, missing and unknown parts.

    Args:
        model: LoRA file of any layout, a PEFT adapter's folder; or a base: diffusers folder, Hub id, .safetensors.
        keys: For a LoRA: every module too, with its rank, alpha and size of the change.
        configs: For a base in one file: diffusers folder or Hub id with its configs.
        vae: For a base: another VAE, as for training.
        revision: Git revision of a base on the Hub.
        variant: Weights variant of a diffusers base.
    """
    from sdxl_lora.tools import describe

    print(describe.show_any(model, keys, configs, vae, revision, variant))
    return 0


def check(lora: Given[Path]) -> int:
    """Find non-finite values, zero modules and outliers among the changes. Exit code 3 if the file is unusable."""
    from sdxl_lora.lora.formats.reader import read_lora
    from sdxl_lora.tools import describe

    errors, warnings = describe.check(read_lora(lora))
    for line in [*(f"error: {text}" for text in errors), *(f"warning: {text}" for text in warnings)]:
        print(line)
    print(f"{lora}: {len(errors)} errors, {len(warnings)} warnings")
    return 3 if errors else 0


def convert(
    lora: Given[Path],
    output: Given[Path],
    to: Literal["kohya", "kohya-diffusers", "diffusers", "peft"] = "kohya",
    base: Path | None = None,
    rank: int = 64,
    precision: Precision = "fp16",
    overwrite: bool = False,
) -> int:
    """Write the same LoRA in another layout.

    Args:
        lora: LoRA file of any layout, or a PEFT adapter's folder.
        output: The file to write; a folder with --to peft.
        to: kohya loads in every client; diffusers has alpha multiplied in; peft for PeftModel.from_pretrained.
        base: Base model (diffusers folder or single .safetensors), which a DoRA needs to become a LoRA.
        rank: Rank of the LoRA that replaces a DoRA, LoHa or LoKr where the layout does not support them.
        precision: Numbers of the file; fp32 is used where fp16 or bf16 would lose values.
        overwrite: Replace what stands at the output.
    """
    from sdxl_lora.tools import rewrite

    print(rewrite.convert(lora, output, to, precision, base, rank, overwrite))
    return 0


def merge(
    lora: Given[Path], base: Given[Path], output: Given[Path], weight: float = 1.0, overwrite: bool = False
) -> int:
    """Merge a LoRA into a base model, in the same layout and precision; needs little memory.

    Args:
        lora: LoRA file of any layout and kind.
        base: Diffusers folder, or single .safetensors in the original layout.
        output: Folder or file to write, like the base.
        weight: Strength; 1 is as trained.
        overwrite: Replace what stands at the output.
    """
    from sdxl_lora.tools import models

    print(models.merge(lora, base, output, weight, overwrite))
    return 0


def combine(
    output: Given[Path],
    loras: list[Path],
    weights: list[float],
    rank: int | None = None,
    precision: Precision = "fp16",
    overwrite: bool = False,
) -> int:
    """Write the weighted sum of LoRAs as one file.

    Args:
        output: The .safetensors to write, in kohya's layout.
        loras: Two or more LoRA files.
        weights: A weight for each.
        rank: Nearest LoRA of this rank; without it the sum is exact and the ranks add up.
        precision: Numbers of the file; fp32 is used where fp16 or bf16 would lose values.
        overwrite: Replace what stands at the output.
    """
    from sdxl_lora.tools import rewrite

    print(rewrite.combine(loras, weights, output, rank, precision, overwrite))
    return 0


def resize(
    lora: Given[Path],
    output: Given[Path],
    rank: int | None = None,
    energy: float | None = None,
    precision: Precision = "fp16",
    overwrite: bool = False,
) -> int:
    """Write the same LoRA at a lower rank.

    Args:
        lora: LoRA file of any layout.
        output: The .safetensors to write, in kohya's layout.
        rank: The new rank.
        energy: Or the share of each module's change to keep, between 0 and 1, such as 0.95.
        precision: Numbers of the file; fp32 is used where fp16 or bf16 would lose values.
        overwrite: Replace what stands at the output.
    """
    from sdxl_lora.tools import rewrite

    print(rewrite.resize(lora, output, rank, energy, precision, overwrite))
    return 0


def extract(
    tuned: Given[Path],
    base: Given[Path],
    output: Given[Path],
    rank: int = 32,
    energy: float = 1.0,
    targets: Literal["attention", "attention+ff", "all-linear", "all-linear+conv"] = "all-linear",
    precision: Precision = "fp16",
    device: str = "cpu",
    overwrite: bool = False,
) -> int:
    """Extract the LoRA that turns a base into its fine-tuned model, by SVD.

    Args:
        tuned: Fine-tuned model: diffusers folder or single .safetensors.
        base: The model it was made from, in either layout.
        output: The .safetensors to write, in kohya's layout.
        rank: Highest rank of a module.
        energy: Share of each module's difference to keep where a lower rank suffices; 1 for the full rank.
        targets: Which layers.
        precision: Numbers of the file; fp32 is used where fp16 or bf16 would lose values.
        device: Where the SVDs run, such as cuda.
        overwrite: Replace what stands at the output.
    """
    from sdxl_lora.tools import models

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            print(f"{done} of {total} layers", file=sys.stderr)

    print(models.extract(tuned, base, output, rank, energy, targets, precision, device, overwrite, progress))
    return 0


COMMANDS = {f.__name__: f for f in (show, check, convert, merge, combine, resize, extract)}


def main(argv: list[str] | None = None) -> int:
    """Return exit code 0; 2 for unusable input (a line says why), 3 when `check` fails, 5 for the disk, 6 for NaN."""
    explain_failed_imports()
    try:
        argv = [pasted_path(argument) for argument in (sys.argv[1:] if argv is None else argv)]
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m sdxl_lora.tools",
            description="Tools for SDXL LoRA files of any layout.",
            args=argv,
            use_underscores=True,
        )
    except (ValueError, ArithmeticError, OSError) as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 5 if isinstance(error, OSError) else 2)


if __name__ == "__main__":
    sys.exit(main())
