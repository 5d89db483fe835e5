"""Who may speak to the page: this machine alone, or whoever knows the password; never another site's script.

`Guard` stands in front of all of Gradio, as ASGI middleware. Files leave only through `publish`. No gradio.
"""

import base64
import hmac
import ipaddress
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdxl_lora.errors import ConfigError

PASSWORD_VARIABLE = "SDXL_LORA_UI_PASSWORD"  # not a flag: a command line is seen by every user of the machine
LEAST_PASSWORD_LENGTH = 8
USER = "lora"
# Ways of Gradio's that the page does not use: to files of other addresses, and past the queue to its functions.
REFUSED_PATHS = (
    "/file=http", "/proxy=", "/stream/", "/vibe", "/monitoring", "/component_server",
    "/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/",
)  # fmt: skip
LOOK_PATH = "/gradio_api/run/sdxl_lora_look"  # what look.js asks; Gradio lets only functions that do not queue through
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'; object-src 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def password_for(host: str, environment: dict[str, str] | os._Environ = os.environ) -> str | None:
    """The password that requests must bring; None where only this machine can ask.

    Raises:
        ConfigError: others could ask, and there is no password, or a short one.
    """
    password = environment.get(PASSWORD_VARIABLE) or None
    if password is None and not is_loopback(host):
        raise ConfigError(f"--host {host} opens the page to others: set a password in {PASSWORD_VARIABLE} first")
    if password is not None and len(password) < LEAST_PASSWORD_LENGTH:
        raise ConfigError(f"the password in {PASSWORD_VARIABLE} must have {LEAST_PASSWORD_LENGTH} characters or more")
    return password


class Guard:
    """Refuses, before Gradio sees it, every request that does not come from this page or lacks the password.

    401: no password or a wrong one. 403: another site's script (Origin, Sec-Fetch-Site), or another name for this
    machine (Host), by which a site could pass for it. 404: a way of Gradio's that the page does not use.
    """

    def __init__(self, app, password: str | None = None):
        self.app, self.password = app, password

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status = self.refusal(scope.get("method", "GET"), scope["path"], headers)
        if status is not None:
            return await refuse(scope, send, status)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        return await self.app(scope, receive, send_with_headers)

    def refusal(self, method: str, path: str, headers: dict[str, str]) -> int | None:
        """The status to refuse with, or None."""
        host = headers.get("host", "")
        if self.password is None and not is_loopback(host_name(host)):
            return 403
        if is_of_another_site(method, host, headers):
            return 403
        if self.password is not None and not self.knows_password(headers.get("authorization", "")):
            return 401
        if path != LOOK_PATH and any(refused in unquote(path).lower() for refused in REFUSED_PATHS):
            return 404
        return None

    def knows_password(self, authorization: str) -> bool:
        kind, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
        except ValueError:
            return False
        return self.password is not None and hmac.compare_digest(given, self.password.encode())


def host_name(host: str) -> str:
    """Without its port: localhost, 127.0.0.1 or ::1."""
    return urlsplit(f"//{host}").hostname or ""


def is_of_another_site(method: str, host: str, headers: dict[str, str]) -> bool:
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() != host.lower()
    site = headers.get("sec-fetch-site", "same-origin")
    follows_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return site in ("cross-site", "same-site") and not follows_link


async def refuse(scope, send, status: int) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="SDXL LoRA", charset="UTF-8"'))
    words = {401: "the password is missing or wrong", 403: "refused", 404: "not found"}[status]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


def private_temporary_folder() -> Path:
    """A folder of this process alone for what Gradio serves; else all of the user's Gradio pages would share one."""
    folder = Path(tempfile.mkdtemp(prefix="sdxl-lora-ui-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def publish(path: Path, folder: Path) -> str:
    """Lets a file that a run has written be fetched: a link to it, or a copy, in the folder that Gradio serves.

    Args:
        folder: of the run; a file outside it is not published.
    Raises:
        ConfigError: the file is not the run's own.
    """
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ConfigError(f"{path} is not a file of {folder}")
    served = Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio")
    to = served / secrets.token_hex(8) / path.name
    to.parent.mkdir(parents=True)
    try:
        os.link(path.resolve(), to)
    except OSError:
        shutil.copyfile(path, to)
    return str(to)
