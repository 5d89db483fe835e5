"""Settings of a training, in sections.

A setting is a field of a section: type, default, range and resume rule on one line, its help text below. Users see all
of them flat, as flags, YAML keys, lines of a run's config.yaml and widgets of the web page. Imports no torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt

from sdxl_lora.config.checks import raise_all
from sdxl_lora.config.fields import FREE, PATH, SAME, flat_fields, flat_values, range_problems, tidy_paths
from sdxl_lora.config.names import name_from, printable
from sdxl_lora.config.sections.adapter import AdapterConfig
from sdxl_lora.config.sections.captions import CaptionConfig
from sdxl_lora.config.sections.compute import BatchConfig, ComputeConfig
from sdxl_lora.config.sections.data import CacheConfig, DataConfig
from sdxl_lora.config.sections.evaluation import EvaluationConfig
from sdxl_lora.config.sections.model import ModelConfig
from sdxl_lora.config.sections.objective import NoiseConfig, ObjectiveConfig, TimestepConfig, flow_problems
from sdxl_lora.config.sections.optimizer import OptimizerConfig
from sdxl_lora.config.sections.run import CheckpointConfig, LoggingConfig, OutputConfig, PublishConfig


@dataclass(frozen=True)
class TrainConfig:
    """Train a LoRA for Stable Diffusion XL."""

    output_dir: Annotated[str, PATH, FREE]
    """Folder of the run, for config.yaml, events.jsonl, checkpoint-<step>/, samples/ and the LoRA files."""
    seed: Annotated[int, Ge(0), Lt(2**63), SAME] = 0
    """Fixes the initial weights, the order of images, the noise, the timesteps and the flips."""
    dry_run: Annotated[bool, FREE] = False
    """Print what would be trained (images, steps, parameters, memory, cache, warnings) and write nothing."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    adapter: AdapterConfig = AdapterConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    noise: NoiseConfig = NoiseConfig()
    timesteps: TimestepConfig = TimestepConfig()
    captions: CaptionConfig = CaptionConfig()
    cache: CacheConfig = CacheConfig()
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    output: OutputConfig = OutputConfig()
    publish: PublishConfig = PublishConfig()

    @property
    def run_dir(self) -> Path:
        """The run's folder: output_dir, or a subfolder of it for a job that only fills a part of the caches."""
        part = self.cache.cache_part
        return (
            Path(self.output_dir) if part is None else Path(self.output_dir) / f"cache-part-{part.replace('/', '-of-')}"
        )

    @property
    def cache_folder(self) -> Path:
        """Folder of the caches: cache_dir, or "cache" in output_dir."""
        return Path(self.cache.cache_dir or Path(self.output_dir) / "cache")

    @property
    def lora_name(self) -> str:
        """Name of the LoRA files."""
        return self.output.output_name or name_from(self._folder_name)

    @property
    def _folder_name(self) -> str:
        return Path(self.output_dir).resolve().name

    def notes_on_name(self) -> list[str]:
        """Return a note on the LoRA files' name if neither output_name nor the folder supplies it as it is."""
        if self.output.output_name or self.lora_name == self._folder_name:
            return []
        return [
            f"the LoRA files are called {self.lora_name}, since {printable(self._folder_name)!r} cannot be a file "
            "name everywhere; choose another with --output_name"
        ]

    def same_on_resume(self) -> dict:
        """Return the settings that a resumed run must share with the run before, as JSON values."""
        fields, values = flat_fields(TrainConfig), flat_values(self)
        values = {name: value for name, value in values.items() if fields[name].resume_rule is SAME}
        values["optimizer_name"] = self.optimizer.name
        if self.adapter.init_lora is not None:
            as_in = f"as in {Path(self.adapter.init_lora).name}"
            values |= dict.fromkeys(("rank", "lora_alpha", "target_modules"), as_in)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def fingerprint(self) -> dict:
        """Return the settings stored in a checkpoint for comparison on resume."""
        decides = "similarity" if self.evaluation.by_similarity else None  # None for loss: it is the default
        only_text = None if self.adapter.train_unet else False  # older checkpoints lack this setting
        choices = {"best_by": decides, "train_unet": only_text}
        return {**self.same_on_resume(), **choices, "optimizer_arguments": repr(self.optimizer.arguments)}

    def __post_init__(self) -> None:
        tidy_paths(self)
        first = (self.data, self.cache, self.batch, self.compute, self.objective, self.timesteps, self.adapter)
        sections = (*first, self.optimizer, self.captions, self.evaluation, self.logging, self.publish)
        of_sections = [problem for section in sections for problem in section.problems()]
        raise_all([*range_problems(self), *of_sections, *self.problems()])

    def problems(self) -> list[str]:
        """Return a sentence for each conflict between settings of different sections."""
        problems = self._memory_problems()
        if "\0" in self.output_dir or not self.output_dir:
            problems.append(f"output_dir {self.output_dir!r} is an invalid name")
        of_text = ("text_encoder_lr", "text_encoder_2_lr", "stop_text_encoder_training")
        if not self.adapter.train_text_encoder and any(getattr(self.optimizer, name) is not None for name in of_text):
            problems.append(f"{', '.join(of_text)} need train_text_encoder")
        if not self.adapter.train_unet:
            problems += self._text_alone_problems()
        if self.objective.prediction_type == "flow":
            problems += flow_problems(self.objective, self.noise)
        elif self.objective.prediction_type and self.objective.flow_shift:
            problems.append(
                f"flow_shift needs prediction_type flow, not {self.objective.prediction_type}: leave it out"
            )
        if self.objective.output_preservation is not None and self.adapter.changes_the_base:
            problems.append(
                f"output_preservation does not go with init_lora_weights {self.adapter.init_lora_weights}, which takes "
                "out part of the base that must be kept: use kaiming"
            )
        if self.data.dataset_streaming:
            problems += self._streaming_problems()
        return problems

    def _text_alone_problems(self) -> list[str]:
        """Return a sentence for each setting that conflicts with an untrained UNet."""
        adapter, optimizer = self.adapter, self.optimizer
        if not adapter.train_text_encoder:
            return ["train_unet is off, and so is train_text_encoder: nothing would train, turn one of them on"]
        problems = [
            f"{name} is for the UNet: leave it out when train_unet is off"
            for name, value in {
                "block_ranks": adapter.block_ranks,
                "block_lr_factors": optimizer.block_lr_factors,
            }.items()
            if value
        ]
        if optimizer.stop_text_encoder_training is not None:
            problems.append("stop_text_encoder_training leaves nothing to train when train_unet is off: leave it out")
        if optimizer.text_encoder_lr == 0 and optimizer.text_encoder_2_lr in (None, 0):
            problems.append("text_encoder_lr 0 leaves nothing to train when train_unet is off: give a rate above 0")
        return problems

    def _memory_problems(self) -> list[str]:
        adapter, compute, problems = self.adapter, self.compute, []
        if adapter.changes_the_base and compute.base_precision in ("int8", "nf4", "fp8"):
            problems.append(f"init_lora_weights {adapter.init_lora_weights} changes the base: leave out base_precision")
        if adapter.changes_the_base and compute.stream_base:
            problems.append(f"init_lora_weights {adapter.init_lora_weights} changes the base: leave out stream_base")
        if adapter.changes_the_base and compute.memory_budget is not None:
            problems.append(f"memory_budget does not go with init_lora_weights {adapter.init_lora_weights}")
        return problems + (self.graph_problems() if compute.cuda_graphs == "on" else [])

    def sample_defaults(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return the defaults for what a sample prompt leaves open. size: height and width."""
        evaluation = self.evaluation
        return {
            "height": size[0],
            "width": size[1],
            "seed": self.seed,
            "guidance_scale": evaluation.validation_guidance_scale,
            "steps": evaluation.validation_inference_steps,
        }

    def graph_problems(self) -> list[str]:
        """Return a sentence for each setting that conflicts with CUDA graphs."""
        adapter, problems = self.adapter, []
        if self.compute.stream_base:
            problems.append("cuda_graphs does not go with stream_base, whose weights are loaded again in each step")
        if adapter.train_text_encoder and self.compute.gradient_checkpointing:
            problems.append(
                "cuda_graphs does not go with train_text_encoder and gradient_checkpointing: transformers keeps the "
                "random state of what it recomputes, which a graph cannot do"
            )
        if self.compute.gradient_checkpointing and adapter.has_dropout:
            problems.append(
                "cuda_graphs does not go with gradient_checkpointing and dropout: a graph cannot repeat the dropout"
            )
        # PEFT drops such layers by a branch, and a graph would replay the same branch forever.
        if adapter.module_dropout and adapter.adapter != "lora":
            problems.append(
                f"cuda_graphs does not go with module_dropout of a {adapter.adapter}: use rank_dropout, or adapter lora"
            )
        return problems

    def _streaming_problems(self) -> list[str]:
        """Return a sentence for each setting that conflicts with a stream, whose number of images is unknown."""
        does_not_go = {
            "datasets": bool(self.data.datasets),
            "validation_split": self.evaluation.validation_split > 0,
            "similarity_model": self.evaluation.similarity_model is not None,
            "dry_run": self.dry_run,
            "cache_part": self.cache.cache_part is not None,
            "checkpointing_epochs": self.checkpoint.checkpointing_epochs is not None,
        }
        problems = [
            f"dataset_streaming does not go with {name}: it is not known which images will come"
            for name, is_set in does_not_go.items()
            if is_set
        ]
        if self.batch.train_batch_size == "auto":
            problems.append("train_batch_size auto does not go with dataset_streaming: give a number")
        if self.batch.max_train_steps is None:
            problems.append("dataset_streaming needs max_train_steps: it is not known how long an epoch is")
        return problems
