"""Table and plot of the results of benchmarks/scaling.py."""

from pathlib import Path

import numpy as np

from benchmarks.scaling_model import SIZES


def table(result: dict) -> str:
    lines = [
        "# Scaling", "", f"{result['machine']}. `{result['command']}`", "",
        "| LoRA rank | gradients, MB | s/step: 1 process | each of n apart | n together | predicted "
        "| measured / predicted | images/s, 1 | images/s, n | efficiency | beside contention |", "|" + "---|" * 11,
    ]  # fmt: skip
    for row in result["measured"]:
        lines.append(
            f"| {row['rank']} | {row['gradient_bytes'] / 1e6:.2f} | {row['step_seconds_one']:.4f} "
            f"| {row['step_seconds_apart']:.4f} | {row['step_seconds_together']:.4f} "
            f"| {row['predicted_step_seconds']:.4f} | {row['measured_over_predicted']:.2f} "
            f"| {row['images_per_second_one']:.1f} | {row['images_per_second_together']:.1f} "
            f"| {row['efficiency']:.2f} | {row['efficiency_beside_contention']:.2f} |"
        )
    lines += ["", "On paper (formula and numbers in scaling_model.py), efficiency by number of GPUs:", ""]
    lines += ["| | " + " | ".join(map(str, SIZES)) + " |", "|" + "---|" * (len(SIZES) + 1)]
    for paper in result["on_paper"]:
        of_sizes = paper["images_per_second_and_efficiency"].values()
        lines.append(f"| {paper['cluster']} | " + " | ".join(f"{efficiency:.2f}" for _, efficiency in of_sizes) + " |")
    return "\n".join(lines) + "\n"


def plot(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    rows = result["measured"]
    places = np.arange(len(rows))
    for offset, (name, label) in enumerate({
        "step_seconds_one": "1 process", "step_seconds_apart": "n apart", "step_seconds_together": "n together",
        "predicted_step_seconds": "n together, predicted",
    }.items()):  # fmt: skip
        left.bar(places + 0.2 * (offset - 1.5), [1000 * row[name] for row in rows], 0.2, label=label)
    left.set_xticks(places, [f"rank {row['rank']}\n{row['gradient_bytes'] / 1e6:.1f} MB of gradients" for row in rows])
    left.set_ylabel("ms per step")
    left.set_title(f"measured, n = {rows[0]['processes']}", fontsize=10)
    left.legend(fontsize=8)
    for paper in result["on_paper"]:
        of_sizes = paper["images_per_second_and_efficiency"]
        right.plot([int(n) for n in of_sizes], [e for _, e in of_sizes.values()], marker="o", label=paper["cluster"])
    right.set_xscale("log", base=2)
    right.set_xticks(SIZES, SIZES)
    right.set_ylim(0, 1.05)
    right.set_xlabel("GPUs")
    right.set_title("efficiency on paper, SDXL at 1024 px, rank 16, batch 1", fontsize=10)
    right.legend(fontsize=8, loc="lower left")
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
