"""Middleware between a browser and Gradio."""

import asyncio

import httpx

from webui.server.front import Compressed

SENT = b"<p>much of the same</p>" * 1000


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": SENT})


def asked(path: str, encoding: str = "gzip") -> httpx.Response:
    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Compressed(app)), base_url="http://x") as client:
            return await client.get(path, headers={"Accept-Encoding": encoding})

    return asyncio.run(ask())


def test_pages_are_compressed_where_the_browser_can_read_that_and_files_are_not():
    page = asked("/")
    assert page.headers["content-encoding"] == "gzip" and page.content == SENT
    assert int(page.headers["content-length"]) < len(SENT) / 20
    for other in (asked("/gradio_api/file=/served/a.safetensors"), asked("/", "identity")):
        assert "content-encoding" not in other.headers and other.content == SENT
