"""What the page's own scripts ask for beside what look.js brings: images at full size, numbers to plot, masks kept."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from sdxl_lora.errors import ConfigError, DataError, DiskError
from webui.datasets.folders import roots
from webui.datasets.masks import MOST_BYTES, NO_MASK, save_mask
from webui.figures.curves import answer
from webui.locale.i18n import say, say_problem
from webui.pages.captions import loaded
from webui.runs.context import Context
from webui.runs.run_history import history_of
from webui.server.served import publish_image
from webui.widgets.events import show_errors

MOST_RUNS = 20  # that are plotted in one
# Nothing in the page triggers these: our scripts ask for them by their names.
SETTINGS: dict[str, Any] = {
    "show_progress": "hidden", "show_progress_on": (), "api_visibility": "undocumented", "queue": False,
}  # fmt: skip


def listen_to_scripts(context: Context) -> None:
    """Answer images.js, plots.js and paint.js. Call it inside the page."""
    asked, answered = gr.Textbox(visible=False), gr.Textbox(visible=False)
    for name, handler in (("image", show_errors(image_of(context))), ("curves", curves_of(context))):
        asked.change(handler, asked, answered, api_name=f"sdxl_lora_{name}", **SETTINGS)
    painted = [asked, gr.Textbox(visible=False)]
    gr.on([asked.change], mask_of(context), painted, answered, api_name="sdxl_lora_mask", **SETTINGS)


def image_of(context: Context) -> Callable:
    def whole_image(path: str) -> str:
        """Let an image of the projects or of IMAGES_DIR be fetched; return where it is then."""
        below = (root for root in roots(context.places) if Path(path).resolve().is_relative_to(root.resolve()))
        return publish_image(Path(path), next(below, context.places.projects))

    return whole_image


def curves_of(context: Context) -> Callable:
    def curves(asked: str) -> str:
        """Numbers of runs over their steps; `asked` is JSON of what is known of each run, by its name."""
        try:
            known = json.loads(asked)
        except ValueError:
            known = None
        known = known if isinstance(known, dict) else {}
        runs = {name: context.run_of(name) for name in list(known)[:MOST_RUNS]}
        return answer({name: history_of(run) for name, run in runs.items() if run is not None}, known)

    return curves


def mask_of(context: Context) -> Callable:
    def keep_mask(facts: str, data: str) -> str:
        """What was painted over an image becomes its mask: see datasets/masks.py. `data` is a PNG in base 64."""
        row = loaded(facts)
        try:
            folder = context.dataset_of(str(row.get("dataset")))
            if folder is None or not (folder / "metadata.jsonl").exists():
                raise ConfigError(say("Choose a dataset first."))
            if len(data or "") > 2 * MOST_BYTES:
                raise ConfigError(NO_MASK)
            painted = base64.b64decode(data or "", validate=True)
            return json.dumps({"has": save_mask(folder, str(row.get("file")), str(row.get("seen") or ""), painted)})
        except (ConfigError, DataError, DiskError) as error:
            return json.dumps({"error": say_problem(str(error))})
        except ValueError as error:
            return json.dumps({"error": str(error)})

    return keep_mask
