"""A small reverse proxy for tests of the page behind one: passes requests on as nginx does with `proxy_pass`."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

OWN = ("host", "connection", "content-length", "transfer-encoding", "accept-encoding")


@contextlib.contextmanager
def proxy(port: int, to: str, below: str = "", strips: bool = False, **headers: str) -> Iterator[str]:
    """Serve the page `to` at a port of this machine.

    Args:
        below: the path under which it is shown; others are not found.
        strips: whether `below` is removed from requests, as by a slash behind proxy_pass' address.
        headers: set by the proxy, underscores for dashes; default of `host`: the page's own address, as in nginx.
    """
    client = httpx.AsyncClient(base_url=to, timeout=None)

    async def pass_on(request: Request) -> StreamingResponse:
        path = request.url.path
        if not path.startswith(f"{below}/"):
            return StreamingResponse(iter([b"no such place"]), 404)
        path = path[len(below) :] if strips else path
        passed = [(name, value) for name, value in request.headers.items() if name not in OWN]
        passed += [(name.replace("_", "-"), value) for name, value in headers.items()]
        url = httpx.URL(path=path, query=request.url.query.encode())
        asked = client.build_request(request.method, url, headers=passed, content=await request.body())
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name not in (*OWN, "content-encoding")}
        return StreamingResponse(answer.aiter_bytes(), answer.status_code, kept)

    app = Starlette(routes=[Route("/{path:path}", pass_on, methods=["GET", "POST", "HEAD", "OPTIONS"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    own = socket.create_server(("127.0.0.1", port))  # listens at once: early requests wait
    thread = threading.Thread(target=server.run, args=([own],))
    thread.start()
    try:
        yield f"http://localhost:{port}{below}/"
    finally:
        server.should_exit = True
        thread.join()
