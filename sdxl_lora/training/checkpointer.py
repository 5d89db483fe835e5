"""Saving and restoring a training's state, through accelerator.save_state and load_state."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import nn

from sdxl_lora.config.sections.run import CheckpointConfig
from sdxl_lora.distributed.collectives import on_main_and_broadcast, raise_on_all_ranks
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.io.safetensors import load_tensors, save_tensors
from sdxl_lora.lora.state import load_lora_state, lora_state
from sdxl_lora.run.checkpoints import (
    choose_checkpoint,
    named_as_checkpoints,
    publish,
    read_manifest,
    remove_leftovers,
    rotate,
)
from sdxl_lora.run.disk_errors import disk_errors
from sdxl_lora.run.session import Run

STATE_NAME = "lora_state.safetensors"


class Checkpointable(Protocol):
    """State of a training. The main process saves it, or every process where `is_per_process` exists and is true."""

    def save(self, folder: Path, step: int) -> None: ...

    def load(self, folder: Path) -> None: ...


class AdapterState:
    """Exact weights of the adapters, without the frozen base."""

    def __init__(self, components: Mapping[str, nn.Module]):
        self.components = components

    def save(self, folder: Path, step: int) -> None:
        state = {
            f"{name}.{key}": tensor
            for name, model in self.components.items()
            for key, tensor in lora_state(model).items()
        }
        save_tensors(state, folder / STATE_NAME)
        fault_point("checkpoint_file")

    def load(self, folder: Path) -> None:
        state = load_tensors(folder / STATE_NAME)
        for name, model in self.components.items():
            own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
            load_lora_state(model, own)


class Checkpointer:
    """Saver and restorer of a training. Every process calls it, and raises the errors of any of them.

    Args:
        run: its folder holds the checkpoint-<step> folders, its status names the newest.
        stateful: parts of a checkpoint beside optimizer and random states, in the order of saving.
        fingerprint: facts that a later run must share to resume this one; JSON values.
    """

    def __init__(
        self,
        accelerator,
        run: Run,
        config: CheckpointConfig,
        stateful: Sequence[Checkpointable],
        fingerprint: Mapping,
    ):
        self.accelerator, self.run, self.config = accelerator, run, config
        self.stateful, self.fingerprint, self.step = stateful, dict(fingerprint), 0
        accelerator.register_save_state_pre_hook(self._save_state)
        accelerator.register_load_state_pre_hook(self._load_state)

    def _save_state(self, _, weights: list, folder: str) -> None:
        weights.clear()  # otherwise Accelerate would write the whole base
        for thing in self.stateful:
            if self.accelerator.is_main_process or getattr(thing, "is_per_process", False):
                thing.save(Path(folder), self.step)

    def _load_state(self, prepared: list, folder: str) -> None:
        prepared.clear()
        for thing in self.stateful:
            thing.load(Path(folder))

    def save(self, step: int, is_due: bool = True, best: str | None = None) -> Path:
        """Save the training after `step` steps.

        Args:
            is_due: False for a checkpoint that is saved only because it is the best.
            best: the name of the best step's checkpoint, see `rotate`.
        Raises:
            DiskError: it could not be written whole; older checkpoints are unchanged.
        """
        self.step = step
        temporary, final = self.run.folder / f".tmp-checkpoint-{step}", self.run.folder / f"checkpoint-{step}"
        world_size = self.accelerator.num_processes

        def publish_and_rotate() -> None:
            with disk_errors(self.run.folder, temporary):
                about = {"step": step, "world_size": world_size, "is_due": is_due, "facts": self.fingerprint}
                publish(temporary, final, about)
                rotate(self.run.folder, self.config.checkpoints_total_limit, best)

        with raise_on_all_ranks(self.accelerator), disk_errors(self.run.folder, temporary):
            self.accelerator.save_state(str(temporary))
        on_main_and_broadcast(self.accelerator, publish_and_rotate)
        self.run.event("checkpoint", step=step, path=str(final))
        self.run.update(last_checkpoint=final.name)
        return final

    def restore(self, info: Callable[[str], None]) -> int:
        """Load the checkpoint that `choose_checkpoint` chooses, and return the steps done; 0 for a new run."""

        folder = self.run.folder

        def decide() -> Path | None:
            chosen = choose_checkpoint(folder, self.config.resume_from_checkpoint, self.fingerprint, info)
            for path in named_as_checkpoints(folder):
                if not path.is_dir():
                    info(f"{path.name} is not a folder, so not a checkpoint: it is ignored")
            for leftover in remove_leftovers(folder):
                info(f"removed {leftover.name}, left by an interrupted save")
            return chosen

        chosen = on_main_and_broadcast(self.accelerator, decide)
        if chosen is None:
            self.run.update(step=0, last_checkpoint=None)
            return 0
        self.accelerator.load_state(str(chosen))
        self.accelerator.step = 0  # counts micro-steps; a checkpoint lies between steps, whatever the accumulation
        step, is_ours = read_manifest(chosen)["step"], chosen.absolute().parent == folder.absolute()
        self.run.update(step=step, last_checkpoint=chosen.name if is_ours else str(chosen))
        return step
