"""The page as a whole, without a browser: it imports no torch, has every setting, and is a tab."""

import inspect
import subprocess
import sys

import pytest

from sdxl_lora.config.fields import flat_fields
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from tests.helpers.paths import ROOT
from webui.module import SdxlLoraTrainer
from webui.page import create_page, create_tab
from webui.settings.workspace import Workspace


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return create_page(Workspace(tmp_path_factory.mktemp("projects")))


def components(page) -> list[dict]:
    return page.config["components"]


def test_the_page_imports_no_torch(tmp_path):
    code = (
        "import sys, pathlib, uvicorn\n"
        "from webui.__main__ import serve\n"
        "from webui.settings.workspace import Workspace\n"
        "from webui.server.address import bound\n"
        "uvicorn.Server.run = lambda server, sockets: None\n"
        "serve(Workspace(pathlib.Path(sys.argv[1])), bound('127.0.0.1', 0), '127.0.0.1', None, '')\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'datasets', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_every_field_has_a_widget(page):
    ids = {component["props"].get("elem_id") for component in components(page)}
    for config_class, prefix in ((PreprocessConfig, "prepare"), (TrainConfig, "train")):
        missing = [name for name in flat_fields(config_class) if f"{prefix}-{name}" not in ids]
        assert missing == []


def test_whatever_the_page_listens_with_can_be_called(page):
    handlers = [inspect.unwrap(function.fn) for function in page.fns.values() if function.fn is not None]
    assert len(handlers) > 20 and [handler for handler in handlers if not callable(handler)] == []


def test_the_page_is_a_module_of_another_app_which_knows_nothing_of_its_texts(tmp_path):
    """Its model is unloaded by the method that it has for that; its own texts stay."""
    import gradio as gr

    class Models:
        def unload(self) -> None:
            """What an app does."""

    models, config = Models(), {"LORA_PROJECTS_DIR": str(tmp_path / "p"), "LORAS_DIR": tmp_path, "theme": "dark"}
    trainer = SdxlLoraTrainer({"any": "text"}, models, None, config)
    assert (trainer.unload, trainer.places.projects) == (models.unload, tmp_path / "p")
    with gr.Blocks(analytics_enabled=False) as app, gr.Tabs():
        tab = trainer.create_tab({"any": "text"})
    with gr.Blocks(analytics_enabled=False) as other:
        gr.Textbox()
    assert isinstance(tab, gr.Tab) and app.get_config_file()["i18n_translations"]["fr"]["Save"] == "Enregistrer"
    app.i18n_instance = gr.I18n(en={"hello": "Hello"}, fr={"Save": "Garder"}, de={"hello": "Hallo"})
    texts = app.get_config_file()["i18n_translations"]
    assert (texts["fr"]["Save"], texts["fr"]["Stop"], texts["de"]) == ("Garder", "Arrêter", {"hello": "Hallo"})
    assert other.get_config_file()["i18n_translations"] is None, "apps without the page are left alone"
    with pytest.raises(ConfigError, match="unload_model and unload"):
        SdxlLoraTrainer({}, object(), None, config)
    assert SdxlLoraTrainer({}, None, None, None).unload() is None


def test_places_of_the_environment_hold_for_a_module_unless_the_app_names_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ui.yaml").write_text("LORAS_DIR: file\nMODELS_DIR: file\n")
    for name in ("LORA_PROJECTS_DIR", "LORAS_DIR"):
        monkeypatch.setenv(name, "environment")
    monkeypatch.delenv("MODELS_DIR", raising=False)
    places = SdxlLoraTrainer({}, None, None, {"LORA_PROJECTS_DIR": "app", "LORAS_DIR": None}).places
    assert (places.projects.name, places.loras.name, places.models.name) == ("app", "environment", "file")


def test_the_page_is_a_tab_of_another_app(tmp_path):
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as app, gr.Tabs():
        with gr.Tab("mine"):
            gr.Textbox(label="own")
        create_tab(places=Workspace(tmp_path), title="LoRA")
    ids = [component["props"].get("elem_id") for component in app.get_config_file()["components"]]
    assert "train-rank" in ids and ids.count("train") == 1
