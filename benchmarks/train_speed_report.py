"""Summary, table and plot of the results of benchmarks/train_speed.py."""

from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median, quantiles


def summary(records: list[dict]) -> dict:
    """Summarise the rounds of one trainer."""
    seconds = [second for record in records for second in record["seconds"]]
    first, _, third = quantiles(seconds, n=4)
    memory = "cuda_reserved_gib" if "cuda_reserved_gib" in records[0] else "peak_gib"
    return {
        "seconds_per_step": median(seconds),
        "quartiles": [first, third],
        "cpu_seconds_per_step": median(record["cpu_seconds_per_step"] for record in records),
        "peak_gib": max(record[memory] for record in records),
        **{name: mean(record[name] for record in records) for name in ("start_seconds", "wall_seconds")},
        "cache_seconds": mean(record["cache_seconds"] for record in records),
    }


def summaries(names: Iterable[str], records: list[dict]) -> dict[str, dict]:
    """Summarise each trainer that has records."""
    of_name = {name: [record for record in records if record["trainer"] == name] for name in names}
    return {name: summary(of_trainer) for name, of_trainer in of_name.items() if of_trainer}


def table(args, result: dict) -> str:
    trainers, floor = result["trainers"], result["floors"]
    reference = trainers.get("ours", {}).get("seconds_per_step", float("nan"))
    lines = [
        f"{args.size}, {args.resolution} px, batch {args.batch}, rank {args.rank}, precision {args.precision}, "
        f"{args.rounds} rounds of {args.warmup} + {args.steps} steps. {result['machine']}.",
        "",
        f"A step is {floor['step'] / 1e9:.1f} GFLOP; the best matrix product here ran at "
        f"{result['peak']['flops_per_second'] / 1e9:.0f} GFLOP/s and a copy at "
        f"{result['peak']['bytes_per_second'] / 1e9:.1f} GB/s: floors of {floor['flop_floor_seconds']:.4f} s by FLOPs "
        f"and {floor['byte_floor_seconds']:.4f} s by bytes.",
        "",
        "| | s/step | quartiles | relative to ours | MFU | times the floor | CPU s/step | peak GiB | start s | cache s "
        "| all steps s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    at_least = max(floor["flop_floor_seconds"], floor["byte_floor_seconds"])
    for name, one in trainers.items():
        spent = one["seconds_per_step"]
        lines.append(
            f"| {name} | {spent:.4f} | {one['quartiles'][0]:.4f}-{one['quartiles'][1]:.4f} "
            f"| {spent / reference:.2f} | {floor['flop_floor_seconds'] / spent:.0%} "
            f"| {spent / at_least:.2f} | {one['cpu_seconds_per_step']:.4f} | {one['peak_gib']:.2f} "
            f"| {one['start_seconds']:.1f} | {one['cache_seconds']:.1f} | {one['wall_seconds']:.1f} |"
        )
    lines += [f"| {name} | failed: {reason} |" for name, reason in result["failures"].items()]
    for name, rows in result.get("growth", {}).items():
        lines += ["", f"Ours, {name}:", "", "| " + " | ".join(name.split(", ")) + " |", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(f"{value:.4g}" for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def plot(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = result.get("growth", {})
    figure, axes = pyplot.subplots(1, 1 + len(curves), figsize=(5 * (1 + len(curves)), 4), squeeze=False)
    trainers = result["trainers"]
    seconds = [[s for r in result["records"] if r["trainer"] == name for s in r["seconds"]] for name in trainers]
    axes[0, 0].boxplot(seconds, tick_labels=list(trainers), whis=(5, 95), showfliers=False)
    axes[0, 0].axhline(result["floors"]["flop_floor_seconds"], color="grey", linestyle=":", label="floor by FLOPs")
    axes[0, 0].set(title="seconds per step", ylim=(0, None))
    axes[0, 0].legend()
    for axis, (name, rows) in zip(axes[0, 1:], curves.items(), strict=True):
        across, up = name.split(", ")[:2]
        axis.plot([row[0] for row in rows], [row[1] for row in rows], "o-")
        axis.set(title=f"ours: {up} against {across}", xlabel=across, ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
