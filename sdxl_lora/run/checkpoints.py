"""Checkpoints on the disk: atomic publication of a directory each, choice of the newest valid one, rotation.

    python -m sdxl_lora.run.checkpoints runs/cat          which checkpoints are whole, and why others are not
    python -m sdxl_lora.run.checkpoints runs/cat --export cat.safetensors --step 1500     the LoRA file of one of them
    python -m sdxl_lora.run.checkpoints runs/cat --export cat.safetensors --best          of the best

A checkpoint is written into .tmp-checkpoint-<step> (training/checkpointer.py); every file is flushed to the disk;
manifest.json with sizes and checksums comes last; the directory is renamed; only then are older ones removed. A
directory named checkpoint-<step> was therefore whole once, and its manifest shows whether it still is. stdlib only:
opens no tensor.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from sdxl_lora.errors import CheckpointError
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.io.file_system import CANNOT_RENAME, file_sha256, flush_to_disk, remove, replace
from sdxl_lora.operating_system import print_any_name
from sdxl_lora.run.status import read_status

MANIFEST = "manifest.json"
MINIMUM_KEPT = 2


def publish(temporary: Path, final: Path, about: dict) -> None:
    """Write a directory's manifest, which includes `about`, and give the directory its final name."""
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
    manifest["manifest_sha256"] = manifest_sha256(manifest)
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    fault_point("checkpoint_file")
    flush_to_disk(temporary / MANIFEST)
    flush_to_disk(temporary)
    if final.is_dir():  # damaged, or of the same step before resuming from an older one
        remove_checkpoint(final)
    elif os.path.lexists(final):  # a user's file, or a broken link
        away = free_name(final)
        replace(final, away)
        warnings.warn(f"{final} was not a checkpoint: it is now {away.name}", stacklevel=2)
    fault_point("checkpoint_file")
    replace(temporary, final, last=MANIFEST)
    fault_point("checkpoint_file")
    flush_to_disk(final.parent)


def manifest_sha256(manifest: dict) -> str:
    """Return the checksum of all other entries, which reveals a changed one."""
    others = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def free_name(path: Path) -> Path:
    """Return <name>-moved-away, with a number appended if that is taken."""
    names = (path.with_name(f"{path.name}-moved-away{number or ''}") for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoint-<step> directories of a run, oldest first."""
    return sorted(filter(Path.is_dir, named_as_checkpoints(run_dir)), key=lambda path: int(path.name.split("-")[1]))


def named_as_checkpoints(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint with a valid manifest, whatever the state of its other files."""
    for path in reversed(checkpoints(run_dir)):
        with contextlib.suppress(CheckpointError):
            read_manifest(path)
            return path
    return None


def problem_with(checkpoint: Path) -> str | None:
    """Return the reason why a checkpoint cannot be used; None if every file agrees with its manifest."""
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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST} is missing or damaged ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("manifest_sha256") != manifest_sha256(manifest):
        raise CheckpointError(f"{MANIFEST} is missing or damaged (its checksum differs)")
    return manifest


def rotate(run_dir: Path, keep: int | None, best: str | None = None) -> None:
    """Keep the newest `keep` checkpoints (None for all) without those that were saved only as the best so far.

    The newest two always stay, as does the one named `best`.
    """
    there = checkpoints(run_dir)
    for newer, old in zip(range(len(there) - 1, -1, -1), there, strict=True):
        is_surplus = keep is not None and newer >= keep
        if old.name != best and newer >= MINIMUM_KEPT and (is_surplus or was_best_only(old)):
            fault_point("checkpoint_file")
            remove_checkpoint(old)


def was_best_only(checkpoint: Path) -> bool:
    try:
        return not read_manifest(checkpoint).get("is_due", True)
    except CheckpointError:
        return False


def remove_checkpoint(checkpoint: Path) -> None:
    """Rename a checkpoint, then remove it, so that half a checkpoint is always recognized as a leftover.

    Where it cannot be renamed, its manifest is removed first. Only the link of a linked checkpoint is removed.
    """
    doomed = checkpoint.with_name(f".tmp-{checkpoint.name}-old")
    remove(doomed)
    try:
        checkpoint.rename(doomed)
    except OSError as error:
        if error.errno not in CANNOT_RENAME and not isinstance(error, PermissionError):
            raise
        if not checkpoint.is_symlink():
            (checkpoint / MANIFEST).unlink(missing_ok=True)
        doomed = checkpoint
    fault_point("checkpoint_file")
    remove(doomed)


def remove_leftovers(run_dir: Path) -> list[Path]:
    """Remove the leftovers of interrupted saves, which are never checkpoints, and return their paths."""
    leftovers = sorted(run_dir.glob(".tmp-checkpoint-*"))
    for path in leftovers:
        remove(path)
    return leftovers


def choose_checkpoint(
    run_dir: Path, wanted: str | None, facts: dict | None, report: Callable[[str], None]
) -> Path | None:
    """Return the checkpoint to resume from, or None to start anew.

    Args:
        wanted: "latest" for the newest valid one if there is any; a path, or a name in run_dir, for that one;
            None to start anew, refused where there are checkpoints.
        facts: facts of the present run that the checkpoint must share; None to skip the comparison.
        report: told of every checkpoint that was passed over, with the reason.
    Raises:
        CheckpointError: `wanted` is missing or damaged, none of several is whole, or its facts differ.
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
                raise CheckpointError(f"no checkpoint in {run_dir} is intact; move them away to start afresh")
            return None
    else:
        chosen = run_dir / wanted if (run_dir / wanted).is_dir() else Path(wanted)
        if not chosen.is_dir():
            names = ", ".join(path.name for path in there) or "none"
            raise CheckpointError(f"no checkpoint {wanted}; there are: {names}")
        if problem := problem_with(chosen):
            raise CheckpointError(f"{chosen} cannot be used: {problem}")
    if facts is not None:
        check_facts(read_manifest(chosen)["facts"], facts, chosen)
    return chosen


def check_facts(saved: dict, now: dict, checkpoint: Path) -> None:
    """Raise CheckpointError with a table of the differences, if any."""
    differing = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if differing:
        rows = [f"  {name:24} {saved.get(name)!s:34} {now.get(name)}" for name in differing]
        raise CheckpointError(
            f"{checkpoint} was trained with other settings; go back to them, or choose another --output_dir:\n"
            f"  {'':24} {'checkpoint':34} now\n" + "\n".join(rows)
        )


def describe(checkpoint: Path, best: str | None) -> str:
    """Return a line with name, size, condition, and a mark if it is the best."""
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    mark = ", the best" if checkpoint.name == best else ""
    return f"{checkpoint.name:20} {size / 2**20:9.1f} MiB  {problem_with(checkpoint) or 'intact'}{mark}"


def export(run_dir: Path, name: str | None, to: Path) -> Path:
    """Copy the LoRA file for ComfyUI, A1111 and Forge out of a whole checkpoint, the named one or else the newest.

    Raises:
        CheckpointError: there is none, it is not whole, or `to` exists.
    """
    source = choose_checkpoint(run_dir, name or "latest", None, print)
    if source is None:
        raise CheckpointError(f"there is no checkpoint in {run_dir}")
    if to.exists():
        raise CheckpointError(f"{to} exists: choose another name")
    to.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(lora_file_of(source), to))


def lora_file_of(checkpoint: Path) -> Path:
    """Return a checkpoint's LoRA file for ComfyUI, A1111 and Forge.

    Raises:
        CheckpointError: the checkpoint is not whole, or has no such file.
    """
    if problem := problem_with(checkpoint):
        raise CheckpointError(f"{checkpoint.name} cannot be used: {problem}")
    others = ("pytorch_lora_weights.safetensors", "_state.safetensors")
    files = [path for path in sorted(checkpoint.glob("*.safetensors")) if not path.name.endswith(others)]
    if not files:
        raise CheckpointError(f"{checkpoint.name} has no LoRA file")
    return files[0]


def main(argv: list[str] | None = None) -> int:
    print_any_name()
    parser = argparse.ArgumentParser(description="List a run's checkpoints, or take a LoRA file out of one.")
    parser.add_argument("run_dir", type=Path, help="the output_dir of a training")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the LoRA file of a checkpoint here")
    parser.add_argument("--step", type=int, help="the checkpoint to export; default: the newest intact one")
    parser.add_argument("--best", action="store_true", help="export the best one, see --best_by of the training")
    arguments = parser.parse_args(argv)
    best = read_status(arguments.run_dir).get("best_checkpoint")
    try:
        if arguments.best and best is None:
            raise CheckpointError(
                f"{arguments.run_dir} has no best checkpoint: --validation_split or --best_by similarity finds one"
            )
        if arguments.export:
            name = best if arguments.best else arguments.step and f"checkpoint-{arguments.step}"
            print(f"wrote {export(arguments.run_dir, name, arguments.export)}")
        else:
            lines = [describe(path, best) for path in checkpoints(arguments.run_dir)]
            print("\n".join(lines) or f"no checkpoints in {arguments.run_dir}")
        return 0
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
