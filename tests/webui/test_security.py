"""Access to the page and the files that it serves, with a real HTTP client."""

import base64
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import httpx
import psutil
import pytest

from sdxl_lora.errors import ConfigError
from tests.helpers.paths import ROOT
from tests.helpers.ui_server import Server
from webui.server.security import LEAST_PASSWORD_LENGTH, PASSWORD_VARIABLE, Guard, is_loopback, password_for
from webui.server.served import publish

WAYS = ("get", "post", "request", "stream")
http = SimpleNamespace(
    **{way: partial(getattr(httpx, way), verify=False) for way in WAYS}
)  # a stranger, without cookies
PASSWORD = "correct horse, é"
EVERY_WAY_IN = (
    "/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/heartbeat/x",
    "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=/etc/passwd", "/login_check", "/nowhere", "/docs",
    "/openapi.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    run = folder / "projects" / "cat" / "runs" / "one"
    run.mkdir(parents=True)
    for name in ("config.yaml", "status.json", "one.safetensors", "pytorch_lora_weights.safetensors"):
        (run / name).write_text("{}")
    (run / "leak.safetensors").symlink_to("/etc/passwd")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("locked"), "--host", "0.0.0.0", **{PASSWORD_VARIABLE: PASSWORD})
    yield server
    server.kill()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


# --- who may come in ---


def test_it_listens_on_this_machine_alone(server):
    listening = [c for c in psutil.Process(server.process.pid).net_connections("inet") if c.status == "LISTEN"]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("password", ["", "short"])
def test_others_are_let_in_with_a_good_password_or_not_at_all(tmp_path, password):
    done = subprocess.run(
        [sys.executable, "-m", "webui", "--host", "0.0.0.0"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, PASSWORD_VARIABLE: password, "LORA_PROJECTS_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2 and PASSWORD_VARIABLE in done.stderr and done.stderr.count("\n") == 1


def test_only_loopback_is_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "", "192.168.1.2", "localhost.evil.com", "evil", "127.0.0.1.evil")))
    assert password_for("127.0.0.1", {}) is None
    with pytest.raises(ConfigError, match=str(LEAST_PASSWORD_LENGTH)):
        password_for("127.0.0.1", {PASSWORD_VARIABLE: "x"})


def test_no_way_leads_past_the_password(locked):
    """Without one, for such as know none do not guess; wrong ones are counted, and stand in test_brake.py."""
    for path in EVERY_WAY_IN:
        for method in ("GET", "POST"):
            answer = http.request(method, locked.url + path)
            assert answer.status_code == 401, (method, path)
            assert "Basic" in answer.headers["www-authenticate"]
    assert http.get(locked.url, headers=basic("lora", "wrong")).status_code == 401
    assert http.get(locked.url, headers=basic("lora", PASSWORD)).status_code == 200


@pytest.mark.parametrize("name", ["Host", "Origin", "X-Forwarded-Host"])
@pytest.mark.parametrize("value", ["http://[", "[", "a b", "127.0.0.1:x", "::1]", "user@127.0.0.1", "127.0.0.1:99999"])
def test_a_header_that_is_no_address_is_a_bad_request(server, name, value):
    answer = http.get(server.url + "/config", headers={name: value})
    assert answer.status_code == 400 and "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Basic !"}, {"Authorization": "\xff\xfe"}, {"Accept-Language": "fr;q=x;;,\xff"}, 
        {"Cookie": "=;="}, {"X-Forwarded-For": "[, x"}, {"X-Gradio-Server": "http://["}, {"Sec-Fetch-Site": "\xff"},
        {"Range": "bytes=x"},
    ],
)  # fmt: skip
def test_other_odd_headers_do_no_harm(server, headers):
    answer = http.get(server.url + "/config", headers={k: v.encode("latin-1") for k, v in headers.items()})
    assert answer.status_code == 200 and "Traceback" not in server.log.read_text()


def test_what_the_page_prints_does_not_hold_the_password(locked):
    http.get(locked.url + "/?" + quote(PASSWORD), headers=basic("lora", "wrong"))
    assert PASSWORD not in locked.log.read_text()
    assert PASSWORD not in http.get(locked.url, headers=basic("lora", PASSWORD)).text


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1", "file://"]
)
def test_another_sites_script_is_refused(server, locked, origin):
    for of, headers in ((server, {}), (locked, basic("lora", PASSWORD))):
        for method, path in (
            ("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload"), ("GET", "/config"), ("OPTIONS", "/"),
        ):  # fmt: skip
            answer = http.request(method, of.url + path, headers={**headers, "Origin": origin}, json={})
            assert answer.status_code == 403, (method, path)
            assert "access-control-allow-origin" not in answer.headers


def test_what_carries_no_origin_is_judged_by_where_the_browser_says_it_comes_from(server):
    def status(method="GET", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return http.request(method, server.url + "/config", headers=headers).status_code

    assert status(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403
    assert status(Sec_Fetch_Site="same-site", Sec_Fetch_Mode="cors") == 403
    assert status("POST", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") == 403
    assert status(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") == 200  # someone follows a link
    assert status(Sec_Fetch_Site="same-origin") == status(Sec_Fetch_Site="none") == status() == 200
    assert status(Origin=server.url, Sec_Fetch_Site="same-origin") == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_another_name_for_this_machine_is_refused(server, host):
    """DNS rebinding: a site that resolves its own name to 127.0.0.1."""
    answer = http.get(server.url, headers={"Host": host})
    assert answer.status_code in (400, 403)
    assert http.get(server.url, headers={"Host": f"localhost:{server.port}"}).status_code == 200


def test_the_page_may_not_be_framed_and_may_load_and_send_nothing_elsewhere(server):
    headers = http.get(server.url).headers
    policy = headers["content-security-policy"]
    for part in ("default-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "object-src 'none'"):
        assert part in policy
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    assert not re.search(r'(?:src|href)="https?://', http.get(server.url).text)


# --- what it hands out ---


def test_no_file_of_the_machine_is_served(server):
    run = server.projects / "cat" / "runs" / "one"
    wanted = [
        "/etc/passwd", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd",
        "/proc/self/environ", "//etc/passwd", "/etc/passwd%00.png", "~/.ssh/id_rsa", str(server.settings),
        str(run / "config.yaml"), str(run / "status.json"), str(run / "one.safetensors"), str(run / "leak.safetensors"),
        str(server.projects / ".page"), str(ROOT / "README.md"), "README.md", "webui/server/security.py",
        str(run / ".." / ".." / ".." / ".." / "ui.yaml"),
    ]  # fmt: skip
    for path in wanted:
        for way in (
            "/gradio_api/file=",
            "/file=",
            "/static/",
            "/assets/",
            "/gradio_api/download=",
            "/custom_component/",
        ):
            answer = http.get(server.url + way + path, follow_redirects=True)
            assert answer.status_code in (400, 403, 404, 405, 422) or "gradio" in answer.text[:5000].lower(), (
                way,
                path,
            )
            assert "root:" not in answer.text and "LORA_PROJECTS_DIR" not in answer.text and "PATH=" not in answer.text


def test_the_page_fetches_nothing_for_others(server):
    for way in (
        "/gradio_api/file=http://127.0.0.1:9/",
        "/gradio_api/file=https://example.com/x",
        "/gradio_api/proxy=x",
    ):
        assert http.get(server.url + way).status_code == 404


def test_only_a_file_of_the_run_is_published_and_never_what_a_link_there_means(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir(), other.mkdir()
    (run / "a.safetensors").write_text("a")
    (other / "b").write_text("b")
    (run / "link").symlink_to(other / "b")
    (run / "inner").symlink_to(run / "a.safetensors")
    with open(publish(run / "a.safetensors", run), encoding="utf-8") as file:
        assert file.read() == "a"
    assert publish(run / "inner", run)
    for path in (other / "b", run / "link", run / ".." / "other" / "b", run / "none", run):
        with pytest.raises(ConfigError, match="is not a file of"):
            publish(path, run)


def call(server, elem_id: str, *data) -> str:
    """What the page answers when someone speaks to a button's function without a browser."""
    config = http.get(server.url + "/config").json()
    (button,) = [c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id]
    (index,) = [d["id"] for d in config["dependencies"] if [button, "click"] in [list(t) for t in d["targets"]]]
    body = {"data": list(data), "fn_index": index, "session_hash": "test", "trigger_id": button}
    joined = http.post(server.url + "/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    said = ""
    with http.stream("GET", server.url + "/gradio_api/queue/data?session_hash=test", timeout=30) as stream:
        for line in stream.iter_lines():
            said += line + "\n"
            if "process_completed" in line:
                return said
    return said


@pytest.mark.parametrize("name", ["../..", "cat/../../x", "cat/one/../../..", "/etc", "cat", "cat/\0", ".page/jobs", 7])
def test_a_run_is_named_inside_the_projects_or_not_at_all(server, name):
    answer = call(server, "result-fetch", name, "final")
    assert '"success":false' in answer.replace(" ", "") or "error" in answer.lower()
    assert "/etc" not in answer or name == "/etc"


def test_an_upload_that_is_no_yaml_of_settings_is_small_or_refused(server):
    url = server.url + "/gradio_api/upload"
    assert http.post(url, files={"files": ("a.yaml", b"x" * 2_000_000)}).status_code == 413
    for name in ("../../evil.yaml", "/etc/evil.yaml", "..\\evil.yaml"):
        (path,) = http.post(url, files={"files": (name, b"rank: 4")}).json()
        assert Path(path).resolve().parents[1].name.startswith("sdxl-lora-ui-")
    written = server.projects.parent.rglob("evil.yaml")
    assert all(path.is_relative_to(server.temporary) for path in written)


def test_functions_are_reached_through_the_page_alone(server):
    assert http.get(server.url + "/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
    for path in ("/gradio_api/run/predict", "/gradio_api/api/predict", "/gradio_api/call/start"):
        answer = http.post(server.url + path, json={"data": [], "fn_index": 0})
        assert answer.status_code == 404, path
    functions = [f for f in http.get(server.url + "/config").json()["dependencies"] if f["backend_fn"]]
    ours = {f"sdxl_lora_{name}" for name in ("look", "image", "upload", "curves", "mask")}
    assert ours < {function["api_name"] for function in functions}
    for function in functions:
        body = {"data": [], "fn_index": function["id"]}
        for path in ours:
            answer = http.post(f"{server.url}/gradio_api/run/{path}", json=body)
            assert answer.status_code == (500 if function["api_name"] in ours else 404), function


def test_an_error_of_ours_tells_no_stranger_of_the_machine(server):
    answer = call(server, "result-fetch", {"x": 1}, 5)
    assert "Traceback" not in answer and str(ROOT) not in answer
    assert json.dumps(str(server.projects)) not in answer


def test_the_guard_judges_paths_however_they_are_written():
    guard = Guard(None)
    local = {"host": "127.0.0.1"}
    for path in (
        "/gradio_api/file=http://x",
        "/gradio_api/file%3Dhttp://x",
        "/gradio_api/FILE=HTTP://x",
        "/gradio_api/proxy=x",
    ):
        assert guard.refusal("GET", path, local)[0] == 404
    assert guard.refusal("GET", "/gradio_api/file=/tmp/x", local) is None
