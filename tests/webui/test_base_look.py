"""A base that cannot be trained is told at the press, beside its field and in the page's words, and nothing starts."""

import json
import shutil
from functools import partial
from html import unescape
from types import SimpleNamespace

import pytest
import torch
from diffusers import EDMEulerScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.models.base_kinds import FILE_KINDS, kind_of_unet
from tests.helpers.bases import set_config
from tests.helpers.french import french
from tests.helpers.original_layout import write_original_layout
from webui.locale.i18n import LOCALES
from webui.runs import base_look
from webui.runs.context import Context
from webui.runs.jobs import Jobs
from webui.settings.workspace import Workspace
from webui.widgets.forms import Form, train_config

BASE = "pretrained_model_name_or_path"


@pytest.fixture
def looked_at_here(monkeypatch):
    """Looks happen in this process, which has torch; a list of what was asked for comes back."""
    asked = []

    def ask(names, stamps):
        asked.append(names)
        return base_look.look(names) or None

    monkeypatch.setattr(base_look, "_asked", ask)
    return asked


@pytest.fixture
def base_folder(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def complaint(tmp_path, base, **more):
    entered = {"output_dir": "r", "train_data_dir": str(tmp_path), BASE: str(base), **more}
    widgets = {name: SimpleNamespace(elem_id=f"train-{name}") for name in entered}
    form = Form(TrainConfig, None, widgets, partial(train_config, Workspace(tmp_path / "projects")))
    return form.complaint("cat", *entered.values())


def single_file(path, **tensors):
    save_file({"x": torch.zeros(1), **tensors}, path)
    return path


def test_bases_that_can_be_trained_are_not_told_of(tmp_path, tiny_base, looked_at_here):
    write_original_layout(StableDiffusionXLPipeline.from_pretrained(tiny_base), tmp_path / "whole.safetensors")
    assert complaint(tmp_path, tiny_base) == ""
    configs = {"pretrained_config_name_or_path": str(tiny_base)}
    assert complaint(tmp_path, tmp_path / "whole.safetensors", **configs) == ""
    assert len(looked_at_here) == 2


def test_a_hub_id_is_not_fetched_at_the_press(tmp_path, tiny_base, looked_at_here, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert complaint(tmp_path, "nobody/of-the-hub") == "" and looked_at_here == []
    # A file's own header is read, though the configs beside it are on the Hub alone.
    write_original_layout(StableDiffusionXLPipeline.from_pretrained(tiny_base), tmp_path / "whole.safetensors")
    hub = {"pretrained_config_name_or_path": "nobody/of-the-hub"}
    assert complaint(tmp_path, tmp_path / "whole.safetensors", **hub) == ""
    flux = single_file(tmp_path / "flux.safetensors", **{"double_blocks.0.x": torch.zeros(1)})
    assert "is a Flux checkpoint" in complaint(tmp_path, flux, **hub)


@pytest.mark.parametrize(
    "names, english, translated",
    [
        (["cond_stage_model.transformer.x"], "is a Stable Diffusion 1.x checkpoint", "un modèle Stable Diffusion 1.x"),
        (["lora_unet_x.lora_up.weight"], "is a LoRA, it must be a whole SDXL base", "est un LoRA ; il faut une base"),
        (["conditioner.embedders.0.model.x", "model.diffusion_model.x"], "is the SDXL refiner", "le raffineur de SDXL"),
        (["decoder.conv_in.x", "encoder.conv_in.x"], "is a VAE alone", "est un VAE seul"),
    ],
)
def test_a_file_that_is_no_base_is_told_beside_its_field(tmp_path, looked_at_here, names, english, translated):
    path = single_file(tmp_path / "a.safetensors", **{name: torch.zeros(1) for name in names})
    said = complaint(tmp_path, path)
    assert english in said and f"#train-{BASE}::after" in said and f"{BASE}: " not in said
    assert translated in french(complaint, tmp_path, path)


def inpainting(folder):
    set_config(folder / "unet" / "config.json", in_channels=9)


def other_objective(folder):
    EDMEulerScheduler().save_pretrained(folder / "scheduler")


def without_a_weight(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.bias"]
    save_file(tensors, path)


def without_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def without_model_index(folder):
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    "change, english, translated",
    [
        (inpainting, "is an SDXL inpainting model", "est un modèle SDXL de retouche"),
        (other_objective, "was trained by EDM, which is not supported", "entraînée par EDM, ce qui n'est pas encore"),
        (without_a_weight, "lacks weights, 1 of unet: conv_in.bias", "il manque des poids à "),
        (without_weights, "holds no .safetensors weights of unet", "pas de poids .safetensors pour unet"),
        (without_model_index, "without model_index.json", "un dossier sans model_index.json"),
    ],
)
def test_a_folder_that_cannot_be_trained_is_told_beside_its_field(
    tmp_path,
    base_folder,
    looked_at_here,
    change,
    english,
    translated,
):
    change(base_folder)
    said = complaint(tmp_path, base_folder)
    assert english in said and f"#train-{BASE}::after" in said
    assert translated in unescape(french(complaint, tmp_path, base_folder))


def test_flags_in_a_sentence_are_fields_of_the_page(tmp_path, tiny_base, looked_at_here):
    names = ["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.x", "conditioner.embedders.1.x"]
    path = single_file(tmp_path / "a.safetensors", **{name: torch.zeros(1) for name in names})
    said = complaint(tmp_path, path)
    assert "without its VAE: give one with \u201c" in said and "--" not in said.split("<ul>")[1]
    vae = complaint(tmp_path, tiny_base, pretrained_vae_model_name_or_path="/none/vae.safetensors")
    assert "no such VAE here" in vae and "#train-pretrained_vae_model_name_or_path::after" in vae


def test_nothing_is_queued_for_a_base_that_cannot_be_trained(tmp_path, looked_at_here):
    from webui.pages.tab_train import TrainTab

    jobs = Jobs(tmp_path / "jobs")
    path = single_file(tmp_path / "a.safetensors")
    started = []
    tab = SimpleNamespace(
        context=Context(Workspace(tmp_path / "projects"), jobs),
        form=SimpleNamespace(complaint=lambda *entered, expected: complaint(tmp_path, path)),
        queue=lambda *arguments: started.append(arguments),
    )
    assert "is something else" in TrainTab.start(tab, 1)
    assert started == [] and jobs.all() == []


@pytest.mark.slow  # the story in test_browser.py looks in a process too
def test_the_look_is_a_process_of_its_own_whose_answer_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    path = single_file(tmp_path / "a.safetensors", **{"lora_unet_x.alpha": torch.zeros(1)})
    assert "is a LoRA, it must be a whole SDXL base" in complaint(tmp_path, path)
    commands = []

    def ended(command, **more):
        commands.append((json.loads(command[-1])[0], more["env"]["HF_HUB_OFFLINE"]))
        return SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nImportError: no torch\n")

    monkeypatch.setattr(base_look.subprocess, "run", ended)
    assert "is a LoRA" in complaint(tmp_path, path) and commands == []
    single_file(path, **{"another": torch.zeros(3)})
    assert "cannot be inspected: ImportError: no torch" in complaint(tmp_path, path)
    assert commands == [(str(path), "1")]


@pytest.mark.parametrize("language", LOCALES)
def test_every_kind_of_file_and_unet_is_told_in_every_language(language):
    for kind in (*(name for name, _ in FILE_KINDS), *map(kind_of_unet, (5, 8, 9))):
        assert LOCALES[language].requirement(kind), kind
