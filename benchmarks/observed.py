"""Run a training script unchanged, and write the time and memory of its process.

    python -m benchmarks.observed took.json train_sdxl_lora.py --its flags ...

The script runs as __main__ in this process, which reads its own counters when the script has ended. CUDA_LIMIT_GIB in
the environment keeps torch from reserving more than that on the GPU.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

from benchmarks.usage import peak_gib


def main() -> None:
    output, script = Path(sys.argv[1]), Path(sys.argv[2])
    sys.argv = sys.argv[2:]
    sys.path[0] = str(script.resolve().parent)
    if limit := os.environ.get("CUDA_LIMIT_GIB"):
        import torch

        torch.cuda.set_per_process_memory_fraction(float(limit) * 2**30 / torch.cuda.mem_get_info()[1])
    code: str | int | None = 1
    try:
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        took = {"code": code or 0, "peak_rss_gib": peak_gib(), "cpu_seconds": time.process_time()}
        cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
        if cuda is not None and cuda.is_available():
            took["cuda_reserved_gib"] = cuda.max_memory_reserved() / 2**30
            took["cuda_allocated_gib"] = cuda.max_memory_allocated() / 2**30
            took |= {"cuda_limit_gib": float(limit)} if limit else {}
        output.write_text(json.dumps(took), encoding="utf-8")


if __name__ == "__main__":
    main()
