"""The part of the results that compares checkpoints and strengths by measurement. See sdxl_lora/select."""

from pathlib import Path

import gradio as gr

from sdxl_lora.errors import ConfigError
from webui.figures.recommendation import FOLDER, GRID_NAME, Recommendation, recommendation_of
from webui.locale.i18n import T, say
from webui.runs.context import Context
from webui.runs.launch import select_job
from webui.runs.listing import state_of_job
from webui.widgets import html as show
from webui.widgets import templates
from webui.widgets.events import QUIET, show_errors, tell


class RecommendBox:
    """Comparison of a run's checkpoints.

    Args:
        chosen: the run to compare.
    """

    def __init__(self, context: Context, chosen: gr.Dropdown):
        self.context = context
        with gr.Accordion(T("Which checkpoint, at which strength?"), open=False, elem_id="result-recommend-box"):
            gr.Markdown(T("Draws every checkpoint at four strengths, then more of the four best, and recommends one."))
            with gr.Row(elem_classes="actions"):
                self.similarity = gr.Dropdown(
                    ["facebook/dinov2-base", "facebook/dinov2-large", "openai/clip-vit-large-patch14", "none"],
                    allow_custom_value=True, label=T("Similarity model"),
                    info=T("A vision model: a folder, or a name on the Hub"), elem_id="result-similarity",
                )  # fmt: skip
                self.clip = gr.Dropdown(
                    ["", "openai/clip-vit-large-patch14"], value="", allow_custom_value=True,
                    label=T("CLIP model"), info=T("Checks whether images match their prompts; leave empty for none"),
                    elem_id="result-clip",
                )  # fmt: skip
                self.button = gr.Button(T("Compare and recommend"), variant="primary", elem_id="result-recommend")
            self.told = gr.HTML(elem_id="result-recommended", padding=False)
        self.button.click(show_errors(self.start), [chosen, self.similarity, self.clip], None, **QUIET)

    def start(self, name: str | None, similarity: str | None, clip: str | None) -> None:
        """Queue the comparison."""
        run = self.context.need_run(name)
        if not list(run.glob("checkpoint-*")):
            raise ConfigError(say("This run has no checkpoints to compare."))
        self.context.jobs.add(select_job(run, (similarity or "").strip(), (clip or "").strip()))
        tell(say("Queued: it starts as soon as nothing else is running."))

    def look(self, run: Path | None) -> str:
        """Return the state of the newest comparison, and the result of the last one."""
        if run is None:
            return ""
        jobs = self.context.jobs
        job = jobs.newest("select", of=run)
        found = recommendation_of(run)
        standing = show.standing(jobs, job) if job is not None and state_of_job(jobs, job) != "done" else ""
        return standing + (templates.runs.found(found, reason(found), run / FOLDER / GRID_NAME) if found else "")


def reason(found: Recommendation) -> str:
    """Return what is recommended and why, or why nothing is."""
    best, chosen = found.best, found.chosen
    if best is None:
        return say("Nothing is recommended: what was learned could not be measured.")
    if chosen is None:
        return say("Nothing is recommended: even the best choice loses as much as it learns.")
    facts = {"step": chosen.step, "strength": f"{chosen.strength:g}", "score": templates.percent(chosen.score)}
    words = say("Recommended: step {step} at strength {strength}, with a score of {score}.", **facts)
    if chosen != best:
        facts = {"step": best.step, "strength": f"{best.strength:g}", "score": templates.percent(best.score)}
        words += " " + say(
            "Step {step} at strength {strength} scores {score}; the mildest within half a point of it is recommended.",
            **facts,
        )
    return words
