"""Check that a base can be trained, in a process of its own: the check imports torch, and the page does not.

    python -m webui.runs.base_look '["BASE", "VAE", "CONFIGS", "REVISION", "VARIANT"]'

prints the sentence that refuses it, nothing if all is well. Nothing is downloaded: files missing in the Hub's cache are
checked when the training starts.
"""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from sdxl_lora.config.sections.model import ModelConfig
from sdxl_lora.packages import explain_failed_imports
from webui.runs.jobs import ROOT

SECONDS = 120  # a longer check, on a sleeping disk, is left to the training
Names = tuple[str, str | None, str | None, str | None, str | None]


def base_problem(model: ModelConfig) -> str | None:
    """Return a sentence that says why the chosen base cannot be trained; None if it can or only the Hub can tell.

    The answer is cached until one of the files changes.
    """
    names = (
        model.pretrained_model_name_or_path,
        model.pretrained_vae_model_name_or_path,
        model.pretrained_config_name_or_path,
        model.revision,
        None if model.variant == "auto" else model.variant,
    )
    from sdxl_lora.io.hub_files import is_cached  # takes a third of a second: not at the page's start

    if not (Path(names[0]).exists() or is_cached(names[0], model.revision, "model_index.json")):
        return None
    return _asked(names, tuple(stamp for name in names[:3] if name for stamp in _stamps(Path(name))))


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of a file, or of the files in a folder and its subfolders."""
    paths = [path] if path.is_file() else sorted([*path.glob("*"), *path.glob("*/*")]) if path.is_dir() else []
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]


@lru_cache(maxsize=32)
def _asked(names: Names, stamps: tuple) -> str | None:
    command = [sys.executable, "-m", "webui.runs.base_look", json.dumps(names)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"the base {names[0]} cannot be inspected: {last.removeprefix('error: ')}"
    return done.stdout.strip() or None


def look(names: Names) -> str:
    """Return the sentence that refuses a base; "" if it can be trained as far as this machine's files tell."""
    from sdxl_lora.errors import ConfigError
    from sdxl_lora.models.base_report import look_at
    from sdxl_lora.models.base_source import has_configs_here
    from sdxl_lora.models.loading import Base, check_base

    base = Base(*names)
    try:
        if has_configs_here(base):
            check_base(base)
            return ""
        return look_at(base, with_configs=False).refusal or ""
    except ConfigError as error:
        return " ".join(str(error).split())


if __name__ == "__main__":
    explain_failed_imports()
    print(look(json.loads(sys.argv[1])))
