"""Settings of a run's logs, checkpoints, LoRA files and upload."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from sdxl_lora.config.fields import FREE, PATH, SET, applies_when

FOR_UPLOAD = applies_when(push_to_hub=SET)


@dataclass(frozen=True)
class LoggingConfig:
    """Logging."""

    loss_bins: Annotated[int, Ge(0), FREE] = 4
    """Also report the loss for each of this many equal ranges of timesteps; 0 turns this off."""
    logging_steps: Annotated[int, Gt(0), FREE] = 1
    """Report every N steps, with the mean loss over them; between reports, a GPU never waits for the host."""
    report_to: Annotated[Literal["tensorboard", "wandb", "trackio", "all", "none"], FREE] = "tensorboard"
    """Where metrics and images go, in addition to events.jsonl; all means TensorBoard and W&B."""
    logging_dir: Annotated[str, PATH, FREE, applies_when(report_to=("tensorboard", "all"))] = "logs"
    """Folder for TensorBoard's files, inside output_dir."""
    tracker_project_name: Annotated[str, FREE, applies_when(report_to=("tensorboard", "wandb", "trackio", "all"))] = (
        "sdxl-lora"
    )
    """Name of the project in the tracker."""
    tracker_run_name: Annotated[str | None, FREE, applies_when(report_to=("wandb", "trackio", "all"))] = None
    """Name of the run in the tracker. Default: output_dir's name."""

    def problems(self) -> list[str]:
        """Return a sentence if W&B would refuse the project's name."""
        project, refused = self.tracker_project_name, "/\\#?%:"  # as of wandb 0.31
        if self.report_to in ("wandb", "all") and (
            len(project) > 128 or not project.strip() or any(sign in refused for sign in project)
        ):
            signs = " ".join(refused)
            return [
                f"tracker_project_name is {project!r}, for W&B it must have 1 to 128 characters, none of them {signs}"
            ]
        return []


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints."""

    checkpointing_steps: Annotated[int | None, Gt(0), FREE] = 500
    """Save a checkpoint every N steps."""
    checkpointing_epochs: Annotated[int | None, Gt(0), FREE] = None
    """Save a checkpoint every N epochs."""
    checkpoints_total_limit: Annotated[int | None, Gt(0), FREE] = None
    """Keep only the newest N checkpoints, but at least two."""
    resume_from_checkpoint: Annotated[str | None, PATH, FREE] = "latest"
    """Checkpoint to resume from: "latest" (starts from scratch if there is none), a checkpoint-<step> folder, or None
    to refuse an output_dir that is already in use."""


@dataclass(frozen=True)
class OutputConfig:
    """LoRA files."""

    output_name: Annotated[str | None, FREE] = None
    """Name of the LoRA file for ComfyUI, A1111 and Forge, without .safetensors. Default: output_dir's name, adapted if
    it is not a valid file name everywhere."""
    save_precision: Annotated[Literal["fp16", "bf16", "fp32"], FREE] = "fp16"
    """Precision of the LoRA files; fp32 is used if values would be lost otherwise."""
    loras_dir: Annotated[str | None, PATH, FREE] = None
    """Existing folder that gets a copy of <output_name>.safetensors, e.g. ComfyUI's models/loras."""
    save_side_files: Annotated[bool, FREE] = False
    """Also write <output_name>.json and .png, which A1111, Forge and InvokeAI show next to a LoRA."""


@dataclass(frozen=True)
class PublishConfig:
    """Publishing."""

    push_to_hub: Annotated[bool, FREE] = False
    """Upload the LoRA files, the model card and its images to the Hub at the end."""
    hub_model_id: Annotated[str | None, FREE, FOR_UPLOAD] = None
    """Repository to upload to, user/name. Default: output_name, under the account that is logged in."""
    hub_private: Annotated[bool, FREE, FOR_UPLOAD] = True
    """Create the repository as private."""

    def problems(self) -> list[str]:
        """Return a sentence if a setting needs another one."""
        return ["hub_model_id needs push_to_hub"] if self.hub_model_id is not None and not self.push_to_hub else []
