"""The address that the page listens on, and the one to open in a browser. No gradio."""

import errno
import socket
from urllib.parse import urlsplit

from sdxl_lora.errors import ConfigError


def bound(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for all addresses of a host; port 0 takes any free port.

    Raises:
        ConfigError: the port is taken or invalid, or this machine has no such address.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}, it must be from 0 to 65535")
    try:
        places = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise ConfigError(f"--host {host} is not known: give an address of this machine, or 0.0.0.0 for all") from None
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(places):
            same = sockets[0].getsockname()[1] if sockets else port
            # This reserves the port: two pages that start at once cannot both have it.
            sockets.append(socket.create_server((address[0], same, *address[2:]), family=family, backlog=128))
    except OSError as error:
        for one in sockets:
            one.close()
        raise ConfigError(why_not(error, host, port)) from None
    return sockets


def why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken by another program, or by this page: stop that one, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for the system: choose one from 1024 up with --port"
    return f"cannot listen on --host {host} --port {port}: {error.strerror or error}"


def address_of(host: str, port: int) -> str:
    """Return the address to open in a browser on this machine."""
    host = host.strip("[]")
    name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def checked_root_path(root_path: str) -> str:
    """Return the path or address under which a proxy shows the page, without its last slash.

    Raises:
        ConfigError: it is neither.
    """
    root_path = root_path.strip().rstrip("/")
    try:
        parts = urlsplit(root_path)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        fits = is_address or (root_path.startswith("/") and not root_path.startswith("//"))
        good = not root_path or (fits and not parts.query and not parts.fragment and root_path.isprintable())
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"--root_path is {root_path!r}, it must be like /lora or https://example.com/lora")
    return root_path
