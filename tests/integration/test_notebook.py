"""The notebook for Colab and Kaggle, every cell in its order, on the small base of this project and without a GPU.

`git`, `pip`, `uv` and `nvidia-smi` are stand-ins that say what they were asked for: nothing is fetched or installed.
"""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from sdxl_lora.graphics_cards import NEEDED_DRIVER
from sdxl_lora.run.events import read_events
from sdxl_lora.run.session import read_status
from tests.helpers.paths import ROOT
from tests.helpers.pyproject import read_pyproject

NOTEBOOK = ROOT / "examples" / "colab_kaggle.ipynb"
BASE = ROOT / "examples" / "shapes" / "base"
SMALL = "--resolution 64 --max_train_steps 2 --mixed_precision no --variant None --report_to none --rank 4"
FEW_SAMPLES = "--validation_inference_steps 1 --num_validation_images 1 --validation_steps 2"
STAND_INS = {
    "nvidia-smi": "echo {driver}",
    "git": f'mkdir "$4"; for name in "{ROOT}"/*; do ln -s "$name" "$4"; done',  # what is written there stays there
    "pip": ":",
    "uv": ":",
}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts, and Colab is Linux")


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A function from a driver's version to a machine as the service's: its commands, which write what they are asked
    into asked.txt."""

    def make(driver):
        (tmp_path / "bin").mkdir()
        for name, does in STAND_INS.items():
            path = tmp_path / "bin" / name
            path.write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/asked.txt"\n{does.format(driver=driver)}\n')
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        return tmp_path

    return make


def run_notebook(folder, **parameters):
    """Run all cells, with other values after the cell of parameters; return what they printed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [first] = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    given = {"WORK": folder / "work", "CACHE": folder / "cache", "PYTHON": Path(sys.executable), **parameters}
    lines = [f"{name} = {str(value)!r}" for name, value in given.items()]
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_all_cells_run_in_order(service, captioned_photographs):
    folder = service("550.54.15")
    said = run_notebook(
        folder,
        CODE="https://example.com/code.git",
        PHOTOS=captioned_photographs,
        BASE=BASE,
        PREPARING="--resolution 64 --caption_model none",
        TRAINING=f"{SMALL} {FEW_SAMPLES}",
    )
    run = folder / "work" / "runs" / "lora"
    assert read_status(run)["state"] == "done"
    assert [step["step"] for step in read_events(run / "events.jsonl", "step")] == [1, 2]
    for name in ("lora.safetensors", "pytorch_lora_weights.safetensors", "samples/grid.png", "drawn.png"):
        assert (run / name).stat().st_size > 0, name
    assert "would stop a training" in said and "sks, a tabby cat" in said and "GiB while training" in said
    asked = (folder / "asked.txt").read_text().splitlines()
    assert "git clone --quiet https://example.com/code.git sdxl-lora-trainer" in asked
    assert "uv sync --quiet --extra cu126" in asked, "the driver is too old for CUDA 13"


@pytest.mark.slow
def test_a_cell_that_fails_ends_it_with_its_reason(service):
    folder = service(f"{NEEDED_DRIVER}.1")
    (folder / "empty").mkdir()
    with pytest.raises(CellExecutionError, match="the photos could not be prepared"):
        run_notebook(folder, PHOTOS=folder / "empty", BASE=BASE)
    assert not (folder / "work" / "runs").exists()
    assert "uv sync --quiet --extra cu130" in (folder / "asked.txt").read_text()


def test_the_notebook_asks_for_builds_that_there_are():
    extras = read_pyproject()["project"]["optional-dependencies"]
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    assert f'"cu130" if int(driver[0].split(".")[0]) >= {NEEDED_DRIVER} else "cu126"' in text
    assert {"cu130", "cu126"} <= extras.keys()
    assert all(not cell.get("outputs") for cell in nbformat.read(NOTEBOOK, as_version=4).cells), "it is kept without"
