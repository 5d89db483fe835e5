"""Serve the web page: python -m webui [--port 7860] [--host 127.0.0.1] [--settings ui.yaml] [--root_path /lora]

--host 0.0.0.0 opens it to others, with a password in SDXL_LORA_UI_PASSWORD.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from socket import socket

from sdxl_lora.config.paths import pasted_path
from sdxl_lora.errors import ConfigError
from sdxl_lora.operating_system import closing_signals
from sdxl_lora.packages import explain_failed_imports
from webui.server.address import address_of, bound, checked_root_path
from webui.server.security import USER, Guard, password_for
from webui.server.served import private_temporary_folder
from webui.settings.workspace import Workspace, load_workspace

MOST_UPLOADED = "1mb"  # a YAML file; images come in pieces, see datasets/uploads.py


def main(argv: list[str] | None = None) -> int:
    explain_failed_imports()
    parser = argparse.ArgumentParser(prog="python -m webui", description="The web page of the LoRA trainer.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any other than loopback needs a password"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--settings",
        type=lambda text: Path(pasted_path(text)),
        help="YAML file with LORA_PROJECTS_DIR and the like; default: ui.yaml",
    )
    parser.add_argument(
        "--root_path", default="", help="where a proxy shows the page: /lora, or https://example.com/lora"
    )
    arguments = parser.parse_args(argv)
    for number in closing_signals():  # until the server handles them
        signal.signal(number, ended)
    served = None
    try:
        password = password_for(arguments.host)
        root_path = checked_root_path(arguments.root_path)
        places = load_workspace(arguments.settings)
        places.make_folders()
        sockets = bound(arguments.host, arguments.port)
        served = private_temporary_folder()
        serve(places, sockets, arguments.host, password, root_path)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        if served is not None:
            shutil.rmtree(served, ignore_errors=True)
    return 0


def ended(number: int, frame) -> None:
    raise SystemExit(128 + number)


def serve(places: Workspace, sockets: list[socket], host: str, password: str | None, root_path: str) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Runs go on afterwards."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr  # after setting the variables that it reads when imported
    from fastapi import FastAPI

    from webui.page import I18N, create_page
    from webui.server.front import AtHome, Compressed
    from webui.server.serve import PageServer

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = create_page(places)
    page.queue(api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        root_path=root_path or None,
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
    words = address_of(host, sockets[0].getsockname()[1])
    if password is not None:
        words += f"\nuser {USER}, and your password"
    PageServer(Guard(Compressed(AtHome(app)), password, root_path), words).run(sockets)


def theme():
    """Return a theme with the system's own fonts: nothing is fetched from outside."""
    import gradio as gr

    sans, mono = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"], ["ui-monospace", "Consolas", "monospace"]
    return gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=sans, font_mono=mono)


if __name__ == "__main__":
    sys.exit(main())
