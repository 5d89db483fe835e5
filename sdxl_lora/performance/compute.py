"""Computation of the frozen UNet: half precision, compiling, recomputed blocks. Independent of LoRA and config."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

COMPILER = "inductor"


def native_bfloat16(device: torch.device | str) -> bool:
    """Return whether a device computes in bfloat16 natively; where it is emulated, float16 is several times as fast.

    `torch.cuda.is_bf16_supported()` is also true for emulation, and for every AMD card.
    """
    device = torch.device(device)
    if device.type == "cuda" and torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName  # CDNA 1 to 4, RDNA 3 and 4
        return architecture.startswith(("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12"))
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).has_bfloat16_conversions
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def without_autocast(unet: nn.Module, dtype: torch.dtype) -> None:
    """Let the UNet compute in its own half precision, regardless of any autocast around it.

    Under autocast, norms return float32, which the next layer casts back: a third more operations and memory. Either
    way norms and softmax compute in float32 internally. Timesteps and sizes stay float32 up to their sinusoids,
    because bfloat16 cannot represent 1023.
    """
    forward = unet.forward

    @functools.wraps(forward)
    def in_half_precision(sample, timestep, encoder_hidden_states, *args, **kwargs):
        with torch.autocast(sample.device.type, enabled=False):
            return forward(sample.to(dtype), timestep, encoder_hidden_states.to(dtype), *args, **kwargs)

    unet.forward = in_half_precision


def checkpointed_blocks(unet: nn.Module) -> list[str]:
    """Return the names of the blocks that can be recomputed separately: down_blocks.0, ..., up_blocks.0, mid_block."""
    blocks = [f"{row}.{number}" for row in ("down_blocks", "up_blocks") for number in range(len(getattr(unet, row)))]
    return [*blocks, *(["mid_block"] if unet.mid_block is not None else [])]


def checkpoint_blocks(unet: Any, only: Sequence[str] = (), drops: bool = False) -> None:
    """Recompute activations in the backward pass, in all blocks or in those named.

    Args:
        drops: keep the random state of each block, so that dropout draws the same again; impossible in a CUDA graph.
    Raises:
        ValueError: an unknown block.
    """
    known = checkpointed_blocks(unet)
    if unknown := [name for name in only if name not in known]:
        raise ValueError(
            f"gradient_checkpointing_blocks has {', '.join(unknown)}, the UNet's blocks are {', '.join(known)}"
        )

    def recomputing(module: nn.Module, *args):
        return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=drops)

    unet.enable_gradient_checkpointing(recomputing)
    for name, module in unet.named_modules():
        if only and hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = any(f"{name}.".startswith(f"{block}.") for block in only)


def compile_blocks(unet: Any, report: Callable[[str], object]) -> None:
    """Compile the UNet's repeated blocks, each kind once; names and state dicts stay the same.

    After the first block that cannot be compiled, all run uncompiled, and `report` is told the reason once.
    """
    unet.compile_repeated_blocks(fullgraph=True, backend=COMPILER)
    failures: list[Exception] = []
    for block in unet.modules():
        if block._compiled_call_impl is not None:
            block._compiled_call_impl = _or_plain(block._compiled_call_impl, block._call_impl, failures, report)


def _or_plain(compiled: Callable, plain: Callable, failures: list[Exception], report: Callable[[str], object]):
    """Return a function that calls `compiled`, and `plain` once any block has failed."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # a slow import

    def call(*args, **kwargs):
        if not failures:
            try:
                return compiled(*args, **kwargs)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                failures.append(error)
                reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
                report(f"going on without --compile, which failed: {reason}")
        return plain(*args, **kwargs)

    return call
