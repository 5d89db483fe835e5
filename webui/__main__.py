"""The web page on this machine: python -m webui [--port 7860] [--host 127.0.0.1] [--settings ui.yaml]

Others may come in by --host 0.0.0.0, with a password in SDXL_LORA_UI_PASSWORD.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from sdxl_lora.errors import ConfigError
from webui.security import USER, Guard, password_for, private_temporary_folder
from webui.workspace import Places, load_places

MOST_UPLOADED = "1mb"  # a YAML file; the page takes nothing else


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m webui", description="The web page of the LoRA trainer.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than loopback need a password"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--settings", type=Path, help="YAML file with LORA_PROJECTS_DIR and the like; default: ui.yaml")
    arguments = parser.parse_args(argv)
    try:
        password = password_for(arguments.host)
        places = load_places(arguments.settings)
        places.projects.mkdir(parents=True, exist_ok=True)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    served = private_temporary_folder()
    try:
        serve(places, arguments.host, arguments.port, password)
    finally:
        shutil.rmtree(served, ignore_errors=True)
    return 0


def serve(places: Places, host: str, port: int, password: str | None) -> None:
    """Until Ctrl-C or SIGTERM. Runs go on."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr  # after the two variables, which it reads when imported
    import uvicorn
    from fastapi import FastAPI

    from webui.page import I18N, create_page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = create_page(places)
    page.queue(api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[],
        show_error=False,
        max_file_size=MOST_UPLOADED,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        i18n=I18N,
        theme=theme(),
    )
    print(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}", flush=True)
    if password is not None:
        print(f"user {USER}, and your password", flush=True)
    uvicorn.run(Guard(app, password), host=host, port=port, log_level="warning")


def theme():
    """The system's own fonts: nothing is fetched from outside."""
    import gradio as gr

    sans, mono = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"], ["ui-monospace", "Consolas", "monospace"]
    default = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=sans, font_mono=mono)
    return default.set(  # Gradio's own are too pale to read
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


if __name__ == "__main__":
    sys.exit(main())
