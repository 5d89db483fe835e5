"""Plots of runs: where they are drawn, and the script that draws them with uPlot (uplot/, MIT), asking for the numbers
by itself."""

import json
from functools import cache
from html import escape
from pathlib import Path

from webui.locale.i18n import LANGUAGES, say

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "uplot" / "uPlot.min.css").read_text(encoding="utf-8")
WORDS = (
    "Loss", "Loss by timesteps", "Gradient norm", "Learning rate", "step", "each step", "smoothed", "held out",
    "Smoothing", "Logarithmic", "Drag over a plot to zoom, double-click to go back.",
    "Nothing to plot yet: the first step is to come.",
)  # fmt: skip


@cache
def plots_script() -> str:
    """JavaScript that draws, with its words by language."""
    words = {language: {text: say(language, text) for text in WORDS} for language in LANGUAGES}
    library = (FOLDER / "uplot" / "uPlot.iife.min.js").read_text(encoding="utf-8")
    script = (FOLDER / "plots.js").read_text(encoding="utf-8")
    return f"{library}\n{script.replace('PLOT_WORDS', json.dumps(words, ensure_ascii=False))}"


def plots(runs: list[str]) -> str:
    """Where the plots of these runs are drawn, in one; more than one are told apart by their colours."""
    return f'<div class="charts" data-runs="{escape(json.dumps(runs))}"></div>'
