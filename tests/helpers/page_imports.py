"""Imports of a page that starts to serve, done before it is forked; see forking.py."""

import importlib
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # as webui.__main__ sets it before it imports Gradio
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for name in ("gradio", "fastapi", "webui.page", "webui.server.front", "webui.server.serve"):
    importlib.import_module(name)
