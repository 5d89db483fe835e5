"""Access to the page: this machine alone, or anyone with the password; never another site's script.

`Guard` stands in front of all of Gradio, as ASGI middleware. Files leave only through served.py. No gradio.
"""

import base64
import hmac
import ipaddress
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import quote, unquote, urlsplit

from sdxl_lora.errors import ConfigError
from webui.server.brake import FREE_GUESSES, FREE_GUESSES_BEHIND_PROXY, Brake, network_of

PASSWORD_VARIABLE = "SDXL_LORA_UI_PASSWORD"  # not a flag: every user of the machine can see command lines
LEAST_PASSWORD_LENGTH = 8
USER = "lora"
LOG = logging.getLogger(__name__)
ADDRESSES = ("host", "origin", "x-forwarded-host")  # headers that name an address
# Gradio's routes that the page does not use: to files of other addresses, and to its functions past the queue.
REFUSED_PATHS = (
    "/file=http", "/proxy=", "/stream/", "/vibe", "/monitoring", "/component_server",
    "/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/",
)  # fmt: skip
# Requests of our scripts; Gradio accepts them only for functions that do not queue.
OWN_PATHS = tuple(f"/gradio_api/run/sdxl_lora_{name}" for name in ("look", "image", "upload", "curves", "mask"))
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
    """Return the password that requests must bring; None if only this machine can ask.

    Raises:
        ConfigError: others could ask, and there is no password, or a short one.
    """
    password = environment.get(PASSWORD_VARIABLE) or None
    if password is None and not is_loopback(host):
        raise ConfigError(f"--host {host} opens the page to others: set a password in {PASSWORD_VARIABLE} first")
    if password is not None and len(password) < LEAST_PASSWORD_LENGTH:
        raise ConfigError(f"the password in {PASSWORD_VARIABLE} must have at least {LEAST_PASSWORD_LENGTH} characters")
    return password


class Guard:
    """Refuses, before Gradio sees it, every request that does not come from this page or lacks the password.

    400: invalid headers. 401: no password or a wrong one. 403: another site's script (Origin, Sec-Fetch-Site), or
    another name for this machine (Host), by which a site could pass for it. 404: a route of Gradio's that the page does
    not use. 429: too many wrong passwords from that address.

    Args:
        root_path: where a proxy shows the page: a path, or the whole address.
        clock: monotonic seconds.
    """

    def __init__(self, app, password: str | None = None, root_path: str = "", clock: Callable = time.monotonic):
        self.app, self.password, self.root_path = app, password, root_path
        self.brake = Brake(clock)
        self.known_browser = f"sdxl_lora_known={secrets.token_urlsafe(24)}"  # it had the right password: no brake

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if any(is_odd(headers.get(name, "")) for name in ADDRESSES):
            return await refuse(scope, send, 400, "Host, Origin or X-Forwarded-Host is not an address")
        path = path_of(scope["path"], self.root_path)
        refused = self.refusal(scope.get("method", "GET"), path, headers, (scope.get("client") or ("unknown",))[0])
        if refused is not None:
            return await refuse(scope, send, *refused)
        return await self.app(self.as_asked(scope, path, headers), receive, self.adding_headers(send, headers))

    def adding_headers(self, send, headers: dict[str, str]):
        added = list(HEADERS)
        if self.password is not None and not self.is_known(headers):
            added.append((b"set-cookie", f"{self.known_browser}; Path=/; HttpOnly; SameSite=Strict".encode()))

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        return send_with_headers

    def as_asked(self, scope: dict, path: str, headers: dict[str, str]) -> dict:
        """Return the request as the browser made it, even if a proxy has put in its own address.

        Gradio builds the addresses of files from it.
        """
        others = [pair for pair in scope["headers"] if pair[0].lower() not in (b"x-gradio-server", b"x-forwarded-host")]
        public = urlsplit(headers.get("origin", ""))
        if public.netloc:
            others = [pair for pair in others if pair[0].lower() != b"x-forwarded-proto"]
            others += [(b"x-forwarded-host", public.netloc.encode()), (b"x-forwarded-proto", public.scheme.encode())]
        elif self.password is not None and headers.get("x-forwarded-host"):
            others.append((b"x-forwarded-host", first_of(headers["x-forwarded-host"]).encode()))
        shown = {"path": path, "raw_path": quote(path).encode()} if path != scope["path"] else {}
        return {**scope, "headers": others, **shown}

    def refusal(
        self, method: str, path: str, headers: dict[str, str], peer: str = "unknown"
    ) -> tuple[int, str] | tuple[int, str, int] | None:
        """Return the status and reason of a refusal, for 429 also the seconds to wait; None to accept."""
        host = headers.get("host", "")
        if self.password is None and not is_loopback(host_name(host)):
            return 403, (
                f"the page answers only to the name of this machine, not to Host {host!r}: open it as 127.0.0.1, or "
                f"behind a proxy, set a password in {PASSWORD_VARIABLE}"
            )
        if self.is_of_another_site(method, headers):
            return 403, other_site_words(headers)
        if self.password is not None and (refused := self.password_refusal(headers, peer)):
            return refused
        if path not in OWN_PATHS and any(refused in unquote(path).lower() for refused in REFUSED_PATHS):
            return 404, "not found"
        return None

    def is_of_another_site(self, method: str, headers: dict[str, str]) -> bool:
        """Return whether another site's script makes the request.

        With a password set, Sec-Fetch-Site: same-origin is trusted: no script can set it and no proxy changes it.
        """
        if self.password is not None and is_same_origin(headers):
            return False
        origin = headers.get("origin")
        if origin is not None:
            names = [headers.get("host", ""), urlsplit(self.root_path).netloc]
            if self.password is not None:  # another site's script needs a preflight to set this, and is refused
                names.append(first_of(headers.get("x-forwarded-host", "")))
            scheme = urlsplit(origin).scheme
            ours = [origin_of(f"{scheme}://{name}") for name in names if name]
            return scheme not in ("http", "https") or origin_of(origin) not in ours
        site = headers.get("sec-fetch-site", "same-origin")
        follows_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return site in ("cross-site", "same-site") and not follows_link

    def password_refusal(self, headers: dict[str, str], peer: str) -> tuple | None:
        given = headers.get("authorization", "")
        counted = [(network_of(peer), FREE_GUESSES)]
        forwarded = headers.get("x-forwarded-for", "").split(",")[-1].strip()
        if forwarded and is_loopback(peer):
            counted = [(f"{network_of(forwarded)} by way of {peer}", FREE_GUESSES), (peer, FREE_GUESSES_BEHIND_PROXY)]
        if not given:
            return 401, "the password is missing"
        if not self.is_known(headers) and (wait := max(self.brake.wait_seconds(*place) for place in counted)):
            return 429, f"too many wrong passwords: try again in {wait} seconds", wait
        if self.knows_password(given):
            return None
        counts = [self.brake.wrong(address) for address, _ in counted]
        LOG.warning("wrong password from %s, %d in a row", counted[0][0], counts[0])
        return 401, "the user or the password is wrong"

    def is_known(self, headers: dict[str, str]) -> bool:
        cookies = [cookie.strip() for cookie in headers.get("cookie", "").split(";")]
        return any(hmac.compare_digest(cookie.encode(), self.known_browser.encode()) for cookie in cookies)

    def knows_password(self, authorization: str) -> bool:
        kind, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True) if kind.lower() == "basic" else b""
        except ValueError:
            return False
        return self.password is not None and hmac.compare_digest(given, f"{USER}:{self.password}".encode())


def is_same_origin(headers: dict[str, str]) -> bool:
    return headers.get("sec-fetch-site") == "same-origin"


def first_of(forwarded: str) -> str:
    """Return the first proxy's value in a header to which every proxy appends."""
    return forwarded.partition(",")[0].strip()


def origin_of(address: str) -> tuple[str, str, int | None]:
    """Return scheme, name and port of an address, with the scheme's default port if it names none."""
    parts = urlsplit(address)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def other_site_words(headers: dict[str, str]) -> str:
    asked, host = headers.get("origin") or "another site", headers.get("host", "")
    return (
        f"refused: the request comes from {asked[:200]}, but the page is at {host[:200]}. Behind a proxy, set a "
        "password and let the proxy pass on its name (Host or X-Forwarded-Host), or give the page its address with "
        "--root_path"
    )


def is_odd(address: str) -> bool:
    """Return whether a header that should name an address cannot be read as one."""
    name = first_of(address)
    try:
        parts = urlsplit(name if "://" in name else f"//{name}")
        _ = parts.port
    except ValueError:
        return True
    return re.search(r"[^!-~]|[\\@#?]", name) is not None


def path_of(path: str, root_path: str) -> str:
    """Return the path without the proxy's prefix, if the proxy has left it there."""
    below = urlsplit(root_path).path.rstrip("/")
    return path[len(below) :] or "/" if below and f"{path}/".startswith(f"{below}/") else path


def host_name(host: str) -> str:
    """Return the host without its port: localhost, 127.0.0.1 or ::1."""
    return urlsplit(f"//{host}").hostname or ""


async def refuse(scope, send, status: int, words: str, wait: int = 0) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="SDXL LoRA", charset="UTF-8"'))
    if wait:
        headers.append((b"retry-after", str(wait).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})
