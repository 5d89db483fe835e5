"""python -m sdxl_lora.doctor [--base PATH] [--output_dir FOLDER]: is this machine fit to train?

Changes nothing, and suggests a remedy for each problem. Works without a GPU and with packages missing. Exit code 0 if
a training can start, 2 if something would stop it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from sdxl_lora.doctor.findings import Finding
from sdxl_lora.doctor.hardware import look_at_torch
from sdxl_lora.doctor.software import (
    look_at_bitsandbytes,
    look_at_neighbours,
    look_at_packages,
    look_at_python,
)
from sdxl_lora.doctor.surroundings import (
    ROOM_FOR_A_BASE,
    ROOM_FOR_A_RUN,
    huggingface_home,
    look_at_accelerate,
    look_at_base,
    look_at_environment,
    look_at_folder,
    look_at_hub,
)


def look_at_all(base: str | None, variant: str | None, output_dir: Path) -> Iterator[Finding]:
    yield from look_at_python()
    yield from look_at_packages()
    yield from look_at_neighbours()
    yield from look_at_bitsandbytes()
    yield from look_at_torch()
    yield from look_at_environment()
    yield from look_at_accelerate()
    yield from look_at_hub()
    yield from look_at_folder("HF_HOME", huggingface_home(), "the variable HF_HOME", ROOM_FOR_A_BASE, stops=False)
    yield from look_at_folder("output", output_dir, "--output_dir", ROOM_FOR_A_RUN, stops=True)
    if base is not None:
        yield from look_at_base(base, variant)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sdxl_lora.doctor", description="Is this machine fit to train?")
    parser.add_argument("--base", help="a base model to look at: diffusers folder, Hub id or .safetensors file")
    parser.add_argument("--variant", help="weights variant of that base, e.g. fp16")
    parser.add_argument("--output_dir", type=Path, default=Path("runs"), help="where runs will be written")
    arguments = parser.parse_args(argv)
    with contextlib.suppress(ImportError):  # psutil may be missing
        from sdxl_lora.startup import quiet_libraries

        quiet_libraries()
    found = []
    for finding in look_at_all(arguments.base, arguments.variant, arguments.output_dir):
        found.append(finding)
        print("\n".join(finding.lines()), flush=True)
    stopping, noted = sum(one.stops for one in found), sum(bool(one.remedy) and not one.stops for one in found)
    print(f"would stop a training: {stopping}; worth knowing: {noted}")
    return 2 if stopping else 0


if __name__ == "__main__":
    sys.exit(main())
