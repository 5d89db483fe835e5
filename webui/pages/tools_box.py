"""The part of the results with tools for a run's LoRA file. See sdxl_lora/tools."""

from pathlib import Path

import gradio as gr

from sdxl_lora.errors import ConfigError
from webui.figures.run_table import settings_of
from webui.locale.i18n import T, say
from webui.runs.context import Context
from webui.runs.launch import new_job
from webui.runs.listing import console_lines, lora_files, stages, state_of_job
from webui.runs.loras import stage_of
from webui.widgets import html as show
from webui.widgets import templates
from webui.widgets.events import QUIET, show_errors, tell

FOLDER = "tools"  # for the results, in the run's folder


class ToolsBox:
    """Tools for a LoRA file.

    Args:
        chosen, stage: the run, and which of its LoRAs to use.
    """

    def __init__(self, context: Context, chosen: gr.Dropdown, stage: gr.Dropdown):
        self.context = context
        with gr.Accordion(T("Tools for the file"), open=False, elem_id="result-tools"):
            with gr.Row(elem_classes="actions"):
                self.tool = gr.Dropdown(
                    [
                        (T("Describe it: ranks, sizes, which programs load it"), "show"),
                        (T("Check its values"), "check"),
                        (T("Make it smaller with a lower rank"), "resize"),
                        (T("Write it in the diffusers layout"), "convert"),
                        (T("Merge it into the base model"), "merge"),
                    ],
                    value="show", label=T("Tool"), filterable=False, elem_id="tool", scale=2,
                )  # fmt: skip
                self.rank = gr.Number(8, label=T("New rank"), precision=0, elem_id="tool-rank", min_width=120)
                self.weight = gr.Number(1, label=T("Merge weight"), elem_id="tool-weight", min_width=120)
                self.button = gr.Button(T("Run the tool"), elem_id="tool-do", min_width=120)
            self.told = gr.HTML(elem_id="tool-told", padding=False)
        asked = [chosen, stage, self.tool, self.rank, self.weight]
        self.button.click(show_errors(self.start), asked, None, **QUIET)

    def start(self, name: str | None, stage: str | None, tool: str, rank: float, weight: float) -> None:
        """Queue the tool."""
        run = self.context.need_run(name, saved=True)
        loras = lora_files(stages(run)[stage_of(run, stage)])
        if not loras:
            raise ConfigError(f"{stage} of {run.name} holds no LoRA file: choose another")
        base = str(settings_of(run).get("pretrained_model_name_or_path") or "")
        words = tool_words(tool, loras[0], run / FOLDER, base, rank, weight)
        (run / FOLDER).mkdir(exist_ok=True)
        self.context.jobs.add(new_job("tool", run, "sdxl_lora.tools", *words))
        tell(say("Queued: it starts as soon as nothing else is running."))

    def look(self, run: Path | None) -> str:
        """Return the state of the newest tool job, and its output."""
        jobs = self.context.jobs
        job = jobs.newest("tool", of=run) if run is not None else None
        if job is None:
            return ""
        words = " ".join(Path(word).name for word in job.command[3:])
        return templates.runs.standing(state_of_job(jobs, job), words) + show.console(console_lines(jobs, job))


def tool_words(tool: str, lora: Path, folder: Path, base: str, rank: float | None, weight: float | None) -> list[str]:
    """Return the arguments of `python -m sdxl_lora.tools`.

    Args:
        folder: for the result; a file of the same name is replaced.
        base: of the run.
    Raises:
        ConfigError: an invalid number, or a base that is not on this machine.
    """
    if tool in ("show", "check"):
        return [tool, str(lora)]
    if tool == "convert":
        return [tool, str(lora), str(folder / f"{lora.stem}-diffusers.safetensors"), "--to", "diffusers", "--overwrite"]
    if tool == "resize":
        if rank is None or not 1 <= rank <= 1024:
            raise ConfigError(f"rank is {rank}, it must be a whole number from 1 to 1024")
        to = folder / f"{lora.stem}-rank{int(rank)}.safetensors"
        return [tool, str(lora), str(to), "--rank", str(int(rank)), "--overwrite"]
    if weight is None or not -4 <= weight <= 4:
        raise ConfigError(f"weight is {weight}, it must be a number from -4 to 4")
    if not Path(base).exists():
        raise ConfigError(f"the base {base} is not on this machine, but merging needs a local one")
    to = folder / f"{lora.stem}-merged{Path(base).suffix if Path(base).is_file() else ''}"
    return ["merge", str(lora), base, str(to), f"--weight={weight:g}", "--overwrite"]
