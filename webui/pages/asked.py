"""Endpoints for the page's scripts beside look.js: full-size images, curves, painted masks."""

import base64
from pathlib import Path
from typing import Any

import gradio as gr

from preprocess.editing.masks import MOST_BYTES, NO_MASK, save_mask
from sdxl_lora.errors import ConfigError
from webui.datasets.folders import roots
from webui.figures.curves import answer
from webui.pages.captions import loaded
from webui.runs.context import Context
from webui.runs.run_history import history_of
from webui.server.served import publish_image
from webui.widgets.events import QUIET, as_json, show_errors

MOST_RUNS = 20  # in one plot
# No component triggers these: our scripts call them by name.
SETTINGS: dict[str, Any] = {**QUIET, "api_visibility": "undocumented", "queue": False}


class Asked:
    """Answers images.js, plots.js and paint.js. Create it inside the page."""

    def __init__(self, context: Context):
        self.context = context
        asked, data, answered = (gr.Textbox(visible=False) for _ in range(3))
        asked.change(show_errors(self.image), [asked], answered, api_name="sdxl_lora_image", **SETTINGS)
        asked.change(as_json(self.curves), [asked], answered, api_name="sdxl_lora_curves", **SETTINGS)
        asked.change(as_json(self.keep_mask), [asked, data], answered, api_name="sdxl_lora_mask", **SETTINGS)

    def image(self, path: str) -> str:
        """Publish an image of the projects or of IMAGES_DIR; return where it can be fetched."""
        places = self.context.places
        below = (root for root in roots(places) if Path(path).resolve().is_relative_to(root.resolve()))
        return publish_image(Path(path), next(below, places.projects))

    def curves(self, asked: str) -> dict:
        """Return numbers of runs over their steps; `asked` has what the page knows of each run, by name."""
        known = loaded(asked)
        runs = {name: self.context.run_of(name) for name in list(known)[:MOST_RUNS]}
        return answer({name: history_of(run) for name, run in runs.items() if run is not None}, known)

    def keep_mask(self, facts: str, data: str) -> dict:
        """Save a painted mask, see preprocess/editing/masks.py. `data` is a PNG in base64."""
        row = loaded(facts)
        folder = self.context.need_dataset(str(row.get("dataset")))
        if len(data or "") > 2 * MOST_BYTES:
            raise ConfigError(NO_MASK)
        painted = base64.b64decode(data or "", validate=True)
        return {"has": save_mask(folder, str(row.get("file")), str(row.get("seen") or ""), painted)}
