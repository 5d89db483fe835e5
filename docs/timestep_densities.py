"""Draws timestep_densities.png: how often which timestep is met, for settings of --timestep_*.

python -m docs.timestep_densities
"""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

from sdxl_lora.diffusion.timesteps import TimestepDensity, bias_range

STEPS, DRAWS = 1000, 40_000
PANELS = {
    "--timestep_sampling logit_normal": {
        f"--logit_mean {mean:g} --logit_std {std:g}": TimestepDensity("logit_normal", logit_mean=mean, logit_std=std)
        for mean, std in [(0, 1), (0, 0.5), (-1, 1), (1, 1)]
    },
    "--timestep_sampling beta": {
        f"--timestep_beta_alpha {alpha:g} --timestep_beta_beta {beta:g}": TimestepDensity(
            "beta", beta_alpha=alpha, beta_beta=beta
        )
        for alpha, beta in [(1, 1), (2, 2), (2, 1), (1, 3)]
    },
    "--timestep_bias_multiplier 3": {
        f"--timestep_bias_strategy {strategy}{ends}": TimestepDensity(
            "biased", bias_begin=begin, bias_end=end, bias_multiplier=3
        )
        for strategy, ends, (begin, end) in [
            ("earlier", "", bias_range("earlier", 0.25, 0, 1)),
            ("later", "", bias_range("later", 0.25, 0, 1)),
            ("range", "\n--timestep_bias_begin 400 --timestep_bias_end 600", bias_range("range", 0.25, 0.4, 0.6)),
        ]
    },
    "range": {
        "uniform (the default)": TimestepDensity(),
        "--min_timestep 200 --max_timestep 800": TimestepDensity(min_timestep=200, max_timestep=800),
        "the same with --timestep_sampling logit_normal": TimestepDensity(
            "logit_normal", min_timestep=200, max_timestep=800
        ),
    },
}


def main() -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), sharex=True, sharey=True, layout="constrained")
    for (title, densities), ax in zip(PANELS.items(), axes.flat, strict=True):
        for label, density in densities.items():
            drawn = [density.timestep((i + 0.5) / DRAWS, STEPS) for i in range(DRAWS)]
            share, edges = np.histogram(drawn, bins=40, range=(0, STEPS), density=True)
            ax.stairs(share * STEPS, edges, label=label, linewidth=1.6)
        ax.set(title=title, xlim=(0, STEPS), ylim=(0, 5))
        ax.legend(fontsize=8, loc="upper center")
        ax.grid(alpha=0.3)
    figure.supxlabel("timestep: 0 is nearly the picture, 999 nearly noise")
    figure.supylabel("draws, relative to uniform")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
