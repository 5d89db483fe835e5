"""A training's state into a checkpoint and back, through accelerator.save_state and load_state with our hooks."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from sdxl_lora.distributed.collectives import all_raise_what_one_raises, main_process_decides
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.lora.state import load_lora_state, lora_state
from sdxl_lora.run.checkpoints import choose_checkpoint, disk_errors, publish, read_manifest, remove_leftovers, rotate

STATE_NAME = "lora_state.safetensors"


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


def save_checkpoint(
    accelerator,
    run_dir: Path,
    step: int,
    facts: dict,
    keep: int | None = None,
    best: str | None = None,
    is_due: bool = True,
) -> Path:
    """Save the training after `step` steps. Every process calls this, and raises what any of them raises.

    Args:
        facts: what a later run must have in common with this one to resume it; JSON values.
        keep, best: see `rotate`.
        is_due: False for one that was saved only because it is the best.
    Raises:
        DiskError: it could not be written whole; older checkpoints are as they were.
    """
    temporary, final = run_dir / f".tmp-checkpoint-{step}", run_dir / f"checkpoint-{step}"

    def publish_and_rotate() -> None:
        with disk_errors(run_dir, temporary):
            about = {"step": step, "world_size": accelerator.num_processes, "is_due": is_due, "facts": facts}
            publish(temporary, final, about)
            rotate(run_dir, keep, best)

    with all_raise_what_one_raises(accelerator), disk_errors(run_dir, temporary):
        accelerator.save_state(str(temporary))
    main_process_decides(accelerator, publish_and_rotate)
    return final


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
