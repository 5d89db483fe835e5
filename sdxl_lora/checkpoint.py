"""Checkpoints: one directory each, published whole or not at all; the newest valid one; rotation.

accelerator.save_state writes into .tmp-checkpoint-<step>, our hooks add the adapter; every file is flushed to the disk;
manifest.json with sizes and checksums comes last; the directory is renamed; only then are older ones removed. So
whatever happens, what is called checkpoint-<step> was whole once, and its manifest shows if it still is.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from sdxl_lora.errors import CheckpointError, DiskError
from sdxl_lora.faults import fault_point
from sdxl_lora.lora import load_lora_state, lora_state
from sdxl_lora.processes import all_raise_what_one_raises, main_process_decides

MANIFEST = "manifest.json"
STATE_NAME = "lora_state.safetensors"
MINIMUM_KEPT = 2
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def register_hooks(accelerator, models: dict[str, nn.Module], export: Callable[[Path], object]) -> None:
    """Make accelerator.save_state and load_state handle adapters alone, not the frozen base.

    Args:
        models: the models with adapters, unwrapped, by name.
        export: called with the directory on the main process, to add the LoRA files for the clients.
    """

    def save(_, weights: list, folder: str) -> None:
        weights.clear()  # of what remains in it Accelerate would write the whole base
        if accelerator.is_main_process:
            state = {
                f"{name}.{key}": tensor for name, model in models.items() for key, tensor in lora_state(model).items()
            }
            save_file(state, Path(folder) / STATE_NAME)
            fault_point("checkpoint_file")
            export(Path(folder))

    def load(prepared: list, folder: str) -> None:
        prepared.clear()
        state = load_file(Path(folder) / STATE_NAME)
        for name, model in models.items():
            own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
            load_lora_state(model, own)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(accelerator, run_dir: Path, step: int, facts: dict, keep: int | None = None) -> Path:
    """Save the training after `step` steps. Every process calls this, and raises what any of them raises.

    Args:
        facts: what a later run must have in common with this one to resume it; JSON values.
        keep: remove all but the newest `keep` checkpoints, and never the newest two.
    Raises:
        DiskError: it could not be written whole; older checkpoints are as they were.
    """
    temporary, final = run_dir / f".tmp-checkpoint-{step}", run_dir / f"checkpoint-{step}"

    def publish_and_rotate() -> None:
        with disk_errors(run_dir, temporary):
            publish(temporary, final, {"step": step, "world_size": accelerator.num_processes, "facts": facts})
            if keep is not None:
                rotate(run_dir, max(keep, MINIMUM_KEPT))

    with all_raise_what_one_raises(accelerator), disk_errors(run_dir, temporary):
        accelerator.save_state(str(temporary))
    main_process_decides(accelerator, publish_and_rotate)
    return final


@contextlib.contextmanager
def disk_errors(run_dir: Path, temporary: Path | None = None):
    """Turn what a full or failing disk raises into a DiskError that says what is needed, free and safe.

    `temporary` is removed then.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskError) or not is_disk_error(error):
            raise
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        good = next((path for path in reversed(checkpoints(run_dir)) if problem_with(path) is None), None)
        size = sum(path.stat().st_size for path in good.rglob("*")) if good else 0
        raise DiskError(
            f"cannot write to {run_dir} ({error}): {shutil.disk_usage(run_dir).free:,} bytes are free"
            + (f", a checkpoint needs about {size:,}" if good else "")
            + ". Make room and run the same command again; "
            + (f"{good.name} is good." if good else "there is no good checkpoint yet.")
        ) from error


def is_disk_error(error: Exception) -> bool:
    """torch.save and safetensors hide the system's error number in their own exceptions."""
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return True
    return any(
        words in str(error)
        for words in (
            "os error 28",
            "os error 27",
            "os error 122",
            "unexpected pos",
            "PytorchStreamWriter failed",
            "file write failed",
        )
    )


def publish(temporary: Path, final: Path, about: dict) -> None:
    """Give a directory its manifest and its name; `about` goes into the manifest."""
    fault_point("checkpoint_file")
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {
        **about,
        "versions": {name: version(name) for name in ("torch", "accelerate", "diffusers", "peft", "transformers")},
        "files": {
            str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        },
    }
    for path in files:
        flush_to_disk(path)
        fault_point("checkpoint_file")
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    fault_point("checkpoint_file")
    flush_to_disk(temporary / MANIFEST)
    flush_to_disk(temporary)
    if final.exists():  # a damaged one, or this step done again from an older one
        remove(final)
    fault_point("checkpoint_file")
    temporary.rename(final)
    fault_point("checkpoint_file")
    flush_to_disk(final.parent)


def flush_to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoint-<step> directories of a run, oldest first."""
    found = [path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def problem_with(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used; None if every file is as its manifest says."""
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError as error:
        return str(error)
    for name, facts in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"]:
            return f"{name} has {path.stat().st_size} bytes, it had {facts['size']}"
        if file_sha256(path) != facts["sha256"]:
            return f"{name} is damaged (its checksum differs)"
    return None


def read_manifest(checkpoint: Path) -> dict:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        assert {"step", "facts", "files"} <= set(manifest)
    except (OSError, ValueError, AssertionError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} is missing or damaged ({error})") from None
    return manifest


def rotate(run_dir: Path, keep: int) -> None:
    for old in checkpoints(run_dir)[:-keep]:
        fault_point("checkpoint_file")
        remove(old)


def remove(checkpoint: Path) -> None:
    """Renamed first, so that a half-removed checkpoint is a leftover and nothing else."""
    doomed = checkpoint.with_name(f".tmp-{checkpoint.name}-old")
    checkpoint.rename(doomed)
    fault_point("checkpoint_file")
    shutil.rmtree(doomed)


def remove_leftovers(run_dir: Path) -> list[Path]:
    """Remove what an interrupted save left behind; it is never a checkpoint."""
    leftovers = sorted(run_dir.glob(".tmp-checkpoint-*"))
    for path in leftovers:
        shutil.rmtree(path)
    return leftovers


def choose_checkpoint(run_dir: Path, wanted: str | None, facts: dict, report: Callable[[str], None]) -> Path | None:
    """The checkpoint to resume from, or None to start anew.

    Args:
        wanted: "latest" for the newest valid one if there is any; a path, or a name in run_dir, for that one;
            None to start anew, refused where there are checkpoints.
        report: told of every checkpoint that was passed over, and why.
    Raises:
        CheckpointError: `wanted` is not there or damaged, none of several is whole, or it is of another run.
    """
    there = checkpoints(run_dir)
    if wanted is None:
        if there:
            raise CheckpointError(
                f"{run_dir} holds checkpoints up to {there[-1].name}: choose another --output_dir, or go on with "
                "--resume_from_checkpoint latest"
            )
        return None
    if wanted == "latest":
        chosen = None
        for path in reversed(there):
            problem = problem_with(path)
            if problem is None:
                chosen = path
                break
            report(f"{path.name} cannot be used: {problem}")
        if chosen is None:
            if there:
                raise CheckpointError(f"no checkpoint in {run_dir} is whole; move them away to start anew")
            return None
    else:
        chosen = run_dir / wanted if (run_dir / wanted).is_dir() else Path(wanted)
        if not chosen.is_dir():
            names = ", ".join(path.name for path in there) or "none"
            raise CheckpointError(f"no checkpoint {wanted}; there are: {names}")
        if problem := problem_with(chosen):
            raise CheckpointError(f"{chosen} cannot be used: {problem}")
    check_facts(read_manifest(chosen)["facts"], facts, chosen)
    return chosen


def check_facts(saved: dict, now: dict, checkpoint: Path) -> None:
    """Raises CheckpointError with a table of what differs."""
    differing = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if differing:
        rows = [f"  {name:24} {saved.get(name)!s:34} {now.get(name)}" for name in differing]
        raise CheckpointError(
            f"{checkpoint} was trained with other settings; go back to them, or choose another --output_dir:\n"
            f"  {'':24} {'checkpoint':34} now\n" + "\n".join(rows)
        )


def restore(accelerator, run_dir: Path, wanted: str | None, facts: dict, report: Callable[[str], None]) -> int:
    """Load the checkpoint that `choose_checkpoint` chooses. Returns the steps done, 0 for a new run.

    Every process calls this; the main one chooses, and what it raises all raise.
    """

    def decide() -> Path | None:
        for leftover in remove_leftovers(run_dir):
            report(f"removed {leftover.name}, left by an interrupted save")
        return choose_checkpoint(run_dir, wanted, facts, report)

    chosen = main_process_decides(accelerator, decide)
    if chosen is None:
        return 0
    accelerator.load_state(str(chosen))
    accelerator.step = 0  # counts micro-steps; a checkpoint stands between steps, whatever the accumulation is now
    return read_manifest(chosen)["step"]
