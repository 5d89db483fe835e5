"""No input of any function of the page accepts a file of the machine, which Gradio would copy and serve.

Requests go over HTTP to the page, and to apps of others that have it as a tab, launched or mounted.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.forking import CONTEXT, settle
from tests.helpers.marks import slow
from tests.helpers.paths import ROOT
from tests.helpers.ui_server import Server, answers, free_port
from tests.helpers.waiting import until

LAUNCHED = """
import tests.helpers.patient_gradio
app.launch(server_port=port, i18n=I18N, quiet=True)
"""
MOUNTED = """
import fastapi, uvicorn
uvicorn.run(gr.mount_gradio_app(fastapi.FastAPI(), app, path="", i18n=I18N), port=port, log_level="error")
"""
WITHIN_ANOTHER = "with gr.Blocks() as outer:\n    app.render()\napp = outer\n" + MOUNTED
HOST = """
import pathlib, sys
import gradio as gr
from webui.page import I18N, create_tab
from webui.settings.workspace import Workspace
port = int(sys.argv[2])
with gr.Blocks(analytics_enabled=False) as app, gr.Tabs():
    create_tab(places=Workspace(pathlib.Path(sys.argv[1])))
"""
CLIENT = httpx.Client(timeout=60)  # one for all: each costs a tenth of a second
FILE = {"meta": {"_type": "gradio.FileData"}, "orig_name": "x.yaml"}


def ask(url: str, function: dict, data: list) -> str:
    """What a function answers, as a browser would ask it."""
    body = {"data": data, "fn_index": function["id"], "session_hash": "asks", "trigger_id": None}
    if function["api_name"] == "sdxl_lora_look":
        return CLIENT.post(url + "/gradio_api/run/sdxl_lora_look", json=body).text
    assert CLIENT.post(url + "/gradio_api/queue/join", json=body).status_code == 200
    said = ""
    with CLIENT.stream("GET", url + "/gradio_api/queue/data?session_hash=asks") as stream:
        for line in stream.iter_lines():
            said += line
            if "process_completed" in line:
                return said
    return said


def functions_of(url: str) -> list[dict]:
    return [f for f in CLIENT.get(url + "/config").json()["dependencies"] if f["backend_fn"] and f["inputs"]]


def assert_takes_none_of_them(said: str, function: dict, served: Path) -> None:
    assert "was not uploaded here" in said or function["api_name"] == "sdxl_lora_look", said[-500:]
    assert "CANARY" not in said, function["api_name"]
    assert not [file for file in served.rglob("*") if file.is_file() and b"CANARY" in file.read_bytes()]


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret.yaml"
    path.write_text("CANARY: 1")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("page"))
    yield server
    server.kill()


def test_no_function_takes_a_file_of_the_machine(server, secret):
    functions = functions_of(server.url)
    assert len(functions) > 40
    for function in functions:
        said = ask(server.url, function, [{"path": str(secret), **FILE}] * len(function["inputs"]))
        assert_takes_none_of_them(said, function, server.temporary)
    start = max(functions, key=lambda function: len(function["inputs"]))
    for number in range(0, len(start["inputs"]), 20):
        data: list = [None] * len(start["inputs"])
        data[number] = {"path": str(secret), **FILE}
        assert_takes_none_of_them(ask(server.url, start, data), start, server.temporary)
    assert list(server.projects.glob(".page/jobs/*")) == []


def be_host(code: str, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    settle(log, environment)
    sys.argv[1:] = arguments
    exec(code, {})


@pytest.mark.parametrize("start", [LAUNCHED, *slow(MOUNTED, WITHIN_ANOTHER)])
def test_nor_does_a_tab_of_another_app_however_it_is_started(tmp_path, secret, start):
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "served")}
    arguments = (HOST + start, [str(tmp_path / "projects"), str(port)], log, environment)
    host = CONTEXT.Process(target=be_host, args=arguments, daemon=True)
    host.start()
    try:
        until(lambda: answers(url) or host.exitcode is not None)
        assert host.exitcode is None, log.read_text()
        asked = [
            function for function in functions_of(url) if function["api_name"] in ("sdxl_lora_look", "load", "answer")
        ]
        assert len(asked) == 3
        for function in asked:
            for named in ways_to_name(secret):
                said = ask(url, function, [named] * len(function["inputs"]))
                assert_takes_none_of_them(said, function, tmp_path / "served")
    finally:
        host.kill()
        host.join()


def ways_to_name(secret: Path) -> list:
    path, relative = str(secret), os.path.relpath(secret, ROOT)
    return [
        {"path": path, **FILE},
        [{"path": relative, **FILE}],
        {"deep": {"path": path, **FILE, "is_stream": True}},
        {"path": path, "url": path},
        {"path": "http://example.com/x.yaml", **FILE},
        {"path": f"file://{path}", **FILE},
    ]


def test_what_was_uploaded_is_taken(server):
    files = {"files": ("mine.yaml", b"output_dir: x\ntrain_data_dir: d\nrank: 77\n")}
    (path,) = CLIENT.post(server.url + "/gradio_api/upload", files=files).json()
    (load,) = [f for f in functions_of(server.url) if f["api_name"] == "load_1"]
    assert "77" in ask(server.url, load, [{"path": path, **FILE}])
