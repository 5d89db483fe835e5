"""Differences and table of the results of benchmarks/step_ratios.py."""

from collections.abc import Callable
from pathlib import Path

import torch

REFERENCE = "PEFT's layers"


def distance(one: dict, reference: dict) -> dict[str, float]:
    """Return the relative difference of the losses, and of the (clipped) gradients as vectors."""
    gradient = torch.linalg.vector_norm(one["gradient"] - reference["gradient"])
    return {
        "loss_difference": abs(one["loss"] - reference["loss"]) / abs(reference["loss"]),
        "gradient_difference": (gradient / torch.linalg.vector_norm(reference["gradient"])).item(),
    }


def table(args, result: dict) -> str:
    ours, ways = result["ways"]["ours"]["seconds"], result["ways"]
    floor = result["flops"] / result["peak"]["flops_per_second"]
    lines = [
        f"{args.size}, {args.resolution} px, batch {args.batch}, rank {args.rank}, precision {args.precision}, "
        f"{args.rounds} rounds of {args.steps} steps in turn. {result['machine']}.",
        "",
        f"A step is {result['flops'] / 1e9:.1f} GFLOP, {floor * 1e3:.1f} ms at the "
        f"{result['peak']['flops_per_second'] / 1e12:.3g} TFLOP/s of the best matrix product here. Losses and "
        f"gradients: difference relative to {REFERENCE}, first step.",
        "",
        "| | ms/step | relative to ours | MFU | GiB beyond weights | first step s | loss difference "
        "| gradient difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, way in ways.items():
        spent, memory = way["seconds"], way["gib_beyond_weights"]
        lines.append(
            f"| {name} | {spent * 1e3:.1f} | {spent / ours:.2f} | {floor / spent:.0%} | {memory:.2f} "
            f"| {way['first_step_seconds']:.1f} | {way['loss_difference']:.1e} | {way['gradient_difference']:.1e} |"
        )
    lines += [f"| {name} | failed: {reason} |" for name, reason in result["failures"].items()]
    return "\n".join(lines) + "\n"


def profile_steps(step: Callable, synchronize: Callable, path: Path, times: int = 3) -> str:
    """Write the slowest kernels of a step to `path`; return their number and milliseconds as text."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU]
    with profile(activities=kinds) as profiler:
        for _ in range(times):
            step()
        synchronize()
    averages = profiler.key_averages()
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    path.write_text(averages.table(sort_by=by, row_limit=45, max_name_column_width=90), encoding="utf-8")
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spent = sum(event.device_time for event in kernels) / times / 1e3
    return f"{len(kernels) / times:.0f} kernels, {spent:.1f} ms on the device in a step"
