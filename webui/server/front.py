"""ASGI middleware that makes the page work under whatever address the browser uses. No gradio.

Gradio writes the server's requested address into the page, which behind a proxy is not the browser's.
"""

from starlette.middleware.gzip import GZipMiddleware

AT_HOME = b'<script>window.gradio_config.root = new URL("./", location.href).href.replace(/\\/$/, "");</script>'
AFTER_CONFIG = b"<script>window.gradio_api_info"  # follows the configuration in Gradio's page


class AtHome:
    """Adds a line to the page that asks the browser for its address."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            return await self.app(scope, receive, send)
        start: dict = {}
        body = b""

        async def send_changed(message):
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                changed = body.replace(AFTER_CONFIG, AT_HOME + AFTER_CONFIG, 1)
                others = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                await send({**start, "headers": [*others, (b"content-length", str(len(changed)).encode())]})
                await send({"type": "http.response.body", "body": changed})

        await self.app(scope, receive, send_changed)


class Compressed:
    """Compresses responses, except files: images and weights would only cost time."""

    def __init__(self, app):
        self.app, self.compressing = app, GZipMiddleware(app, minimum_size=2000, compresslevel=5)

    async def __call__(self, scope, receive, send):
        is_file = scope["type"] == "http" and "/file=" in scope["path"]
        await (self.app if is_file else self.compressing)(scope, receive, send)
