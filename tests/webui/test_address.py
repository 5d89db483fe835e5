"""Address of the page: printed once it answers; a signal ends the page, and nothing is left."""

import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from sdxl_lora.errors import ConfigError
from tests.helpers.marks import slow
from tests.helpers.paths import ROOT
from tests.helpers.ui_server import Server, free_port
from webui.server.address import address_of, bound, checked_root_path


def test_what_is_printed_can_be_opened_in_a_browser():
    assert address_of("127.0.0.1", 7860) == address_of("0.0.0.0", 7860) == "http://127.0.0.1:7860"
    assert address_of("::1", 80) == address_of("[::1]", 80) == address_of("::", 80) == "http://[::1]:80"
    assert address_of("fe80::1", 1) == "http://[fe80::1]:1" and address_of("lora.local", 5) == "http://lora.local:5"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "[::1]"])
def test_a_free_port_is_taken_by_whoever_asks_first(host):
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    sockets = bound(host, 0)
    port = sockets[0].getsockname()[1]
    assert {one.getsockname()[1] for one in sockets} == {port}
    with pytest.raises(ConfigError, match=f"port {port} is taken"):
        bound(host, port)
    for one in sockets:
        one.close()


@pytest.mark.parametrize(
    "host, port, words",
    [
        ("127.0.0.1", 70000, "from 0 to 65535"),
        ("127.0.0.1", -1, "from 0 to 65535"),
        ("no.such.name.invalid", 0, "--host no.such.name.invalid is not known"),
        ("192.0.2.1", 0, "cannot listen on --host 192.0.2.1"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_with_its_flag(host, port, words):
    with pytest.raises(ConfigError, match=words):
        bound(host, port)


def test_a_root_path_is_a_path_or_an_address():
    given = {"": "", "/": "", "/lora/": "/lora", "https://a.example/lora/": "https://a.example/lora"}
    assert {path: checked_root_path(path) for path in given} == given
    for wrong in ("lora", "//evil", "ftp://a/b", "https://", "/a?b", "http://a:x", "/a\nb"):
        with pytest.raises(ConfigError, match="--root_path is"):
            checked_root_path(wrong)


def test_a_taken_port_is_an_error_of_its_own_before_anything_is_printed(tmp_path):
    (tmp_path / "ui.yaml").write_text(f"LORA_PROJECTS_DIR: {tmp_path / 'projects'}\n")
    (one,) = bound("127.0.0.1", 0)
    port = str(one.getsockname()[1])
    command = [sys.executable, "-m", "sdxl_lora.ui", "--port", port, "--settings", str(tmp_path / "ui.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    one.close()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: port {port} is taken") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "number, of_its_own", [(signal.SIGTERM, False), *slow((signal.SIGTERM, True), (signal.SIGINT, True))]
)
def test_a_signal_ends_the_page_with_a_tab_open_and_nothing_is_left(tmp_path, number, of_its_own):
    server = Server(tmp_path, of_its_own=of_its_own)
    assert server.log.read_text() == f"{server.url}\n"
    listening = threading.Event()

    def tab() -> None:
        with httpx.stream("GET", server.url + "/gradio_api/heartbeat/tab", timeout=60) as stream:
            for _ in stream.iter_raw():
                listening.set()

    thread = threading.Thread(target=tab, daemon=True)
    thread.start()
    assert listening.wait(60) and list(server.temporary.iterdir())
    assert server.ended_by(number) == 0
    assert list(server.temporary.iterdir()) == [] and server.log.read_text() == f"{server.url}\n"


def test_a_signal_before_the_page_answers_leaves_nothing_either(tmp_path):
    """Sent once its folder is there, in place of loading Gradio."""
    (tmp_path / "ui.yaml").write_text(f"LORA_PROJECTS_DIR: {tmp_path / 'projects'}\n")
    code = (
        "import os, signal, sys\n"
        "import webui.__main__ as page\n"
        "page.serve = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(page.main(sys.argv[1:]))\n"
    )
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", code, "--port", str(free_port()), "--settings", str(tmp_path / "ui.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=60)
    assert done.returncode == 143 and list((tmp_path / "tmp").iterdir()) == []
