"""The page for apps made of modules: a class with the signature that such apps call, around `create_tab`.

trainer = SdxlLoraTrainer(translations, model_manager, gestionnaire, global_config)
with gr.Blocks() as app, gr.Tabs():
    trainer.create_tab()
"""

import os
from collections.abc import Mapping
from typing import Any

import gradio as gr

from sdxl_lora.errors import ConfigError
from webui.page import create_tab, nothing
from webui.settings.workspace import NAMES, load_workspace

UNLOADING = ("unload_model", "unload")  # names in apps for the model manager's method that frees the GPU


class SdxlLoraTrainer:
    """The page as a module of an app.

    Args:
        translations: the app's texts; not used. The page has its own, in the languages of webui/locale.
        model_manager: holds the app's model; its `unload_model()` or `unload()` is called whenever a job of the page is
            about to start. None if the app has no model.
        gestionnaire: the app's manager of modules; not used.
        global_config: may have LORA_PROJECTS_DIR, LORAS_DIR, MODELS_DIR, IMAGES_DIR and DEFAULT_SDXL_MODEL_FOR_LORA,
            which override the environment variables of these names, as those override ui.yaml; other keys are ignored.
    Raises:
        ConfigError: the model manager has neither method, or ui.yaml cannot be read.
    """

    def __init__(
        self,
        translations: Mapping[str, Any] | None,
        model_manager: Any,
        gestionnaire: Any,
        global_config: Mapping[str, Any] | None,
    ):
        methods = [getattr(model_manager, name) for name in UNLOADING if callable(getattr(model_manager, name, None))]
        if model_manager is not None and not methods:
            raise ConfigError(f"the model manager has neither of the methods {' and '.join(UNLOADING)}: add one")
        self.unload = methods[0] if methods else nothing
        given = {name: value for name in NAMES if (value := (global_config or {}).get(name))}
        self.places = load_workspace(environment={**os.environ, **given})

    def create_tab(self, translations: Mapping[str, Any] | None = None, title: str = "SDXL LoRA") -> gr.Tab:
        """Return the page as a tab; call it inside `gr.Tabs()`."""
        return create_tab(before_training=self.unload, places=self.places, title=title)
