"""Settings of steps, precision, memory and speed."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from sdxl_lora.config.fields import BY_CONTENT, FREE, SAME, SET, applies_when


@dataclass(frozen=True)
class BatchConfig:
    """Steps and batches."""

    train_batch_size: Annotated[int | Literal["auto"], BY_CONTENT] = 1
    """Images per process and micro-step. auto: learns the same as 1 does with the same gradient_accumulation_steps, but
    processes as many of a step's images at once as fit into the GPU's memory, or into memory_budget."""
    gradient_accumulation_steps: Annotated[int, Gt(0), BY_CONTENT] = 1
    """Micro-steps per optimizer step. Everywhere else, a step means an optimizer step."""
    num_train_epochs: Annotated[int | None, Gt(0), FREE] = None
    """Passes over the dataset. Default: see max_train_steps."""
    max_train_steps: Annotated[int | None, Gt(0), FREE] = None
    """Steps to train; overrides num_train_epochs. If neither is set: when resuming, as many as before; otherwise enough
    to use each image about 100 times, within 1000 to 3000 steps, or more if an image would be used fewer than 10
    times."""

    @property
    def images_per_process(self) -> int:
        """Images per step and process, over all micro-steps."""
        at_once = 1 if self.train_batch_size == "auto" else self.train_batch_size
        return at_once * self.gradient_accumulation_steps

    def problems(self) -> list[str]:
        """Return a sentence if train_batch_size is invalid."""
        batch = self.train_batch_size
        if batch != "auto":
            is_number = isinstance(batch, int) and batch > 0
            return [] if is_number else [f"train_batch_size is {batch!r}, it must be a whole number above 0, or auto"]
        if self.gradient_accumulation_steps == 1:
            return [
                "train_batch_size auto takes as many of a step's gradient_accumulation_steps images at once as fit: "
                "say how many a step has, e.g. --gradient_accumulation_steps 8"
            ]
        return []


@dataclass(frozen=True)
class ComputeConfig:
    """Precision, memory and speed."""

    mixed_precision: Annotated[Literal["auto", "no", "fp16", "bf16"], SAME] = "auto"
    """Precision of the base and of the computation; LoRA weights are always float32. auto: when resuming, the same as
    before; otherwise bf16 if the GPU computes in it natively, fp16 on other GPUs, no on a CPU."""
    base_precision: Annotated[Literal["bf16", "fp16", "fp32", "int8", "nf4", "fp8"] | None, SAME] = None
    """Precision of the frozen UNet. In int8, fp8 and nf4, the linear layers of its transformers, which are most of it,
    are packed. Default: mixed_precision."""
    base_products: Annotated[Literal["8bit"] | None, SAME, applies_when(base_precision=("int8", "fp8"))] = None
    """With base_precision int8 or fp8: also multiply in 8 bits if the device can, rounding activations and gradients
    for it. Default: multiply in mixed_precision."""
    stream_base: Annotated[bool, FREE] = False
    """Keep the frozen UNet in RAM and copy each block to the GPU when it computes, forward and backward. Needs the
    least memory, but steps are slower. Best with gradient_checkpointing."""
    memory_budget: Annotated[str | None, FREE] = None
    """GPU memory to stay within, e.g. 8GB. Counts what this model needs, chooses what is recomputed, an 8-bit
    optimizer, the base's precision and whether it stays in RAM, and says what to expect."""
    gradient_checkpointing: Annotated[bool, FREE] = False
    """Recompute activations in the backward pass: far less memory, but a third more time."""
    gradient_checkpointing_blocks: Annotated[tuple[str, ...], FREE, applies_when(gradient_checkpointing=SET)] = ()
    """With gradient_checkpointing: recompute only these blocks of the UNet, e.g. down_blocks.1 up_blocks.1. Default:
    all."""
    compile: Annotated[Literal["auto", "on", "off"], FREE] = "auto"
    """Compile the UNet's repeated blocks: up to a minute at the start, then faster steps. auto: on an NVIDIA GPU with a
    compiler, if the training is long enough to win back that minute; when resuming, as before. If compiling fails,
    training continues without it."""
    cuda_graphs: Annotated[Literal["auto", "on", "off"], FREE] = "auto"
    """Record a micro-step for each image size and replay it: far faster steps if the GPU waits for its host, as an H100
    does at batch size 1. Several processes then send their gradients afterwards, as one message. auto: wherever
    possible. If it fails, training continues without it."""
    allow_tf32: Annotated[bool, FREE] = False
    """Let Ampere and newer GPUs round float32 matrix products to TF32."""
    deterministic: Annotated[bool, FREE] = False
    """Use only deterministic kernels: the same machine gives the same weights bit for bit, at some cost in speed."""
    allow_cpu: Annotated[bool, FREE] = False
    """Allow training a full-size base without a GPU, which takes minutes per step."""
    process_timeout_seconds: Annotated[int, Gt(0), Le(10**8), FREE] = 1800
    """With several processes: how many seconds one may keep the others waiting before they report it and end."""

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = []
        goes_with = ("auto", self.base_precision)
        if self.base_precision in ("bf16", "fp16") and self.mixed_precision not in goes_with:
            problems.append(
                f"base_precision {self.base_precision} needs mixed_precision {self.base_precision}, "
                f"not {self.mixed_precision}"
            )
        if self.base_products and self.base_precision not in ("int8", "fp8"):
            problems.append(
                f"base_products {self.base_products} needs base_precision int8 or fp8, not {self.base_precision}"
            )
        if self.base_products and self.memory_budget is not None:
            problems.append("base_products does not go with memory_budget, which may pack the base in another way")
        if self.stream_base and self.compile == "on":
            problems.append("stream_base does not go with compile, which needs the weights to stay in place")
        budget = self.memory_budget
        if budget is not None and not re.fullmatch(r"\s*\d*\.?\d+\s*(G|GB|GiB)?\s*", budget, re.IGNORECASE):
            problems.append(f"memory_budget is {budget!r}, it must be gibibytes such as 8GB")
        if self.gradient_checkpointing_blocks and not self.gradient_checkpointing:
            problems.append("gradient_checkpointing_blocks needs gradient_checkpointing")
        return problems
