"""uvicorn for the page: prints the address once it answers, and shuts down cleanly on a signal."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from socket import socket

import uvicorn

from sdxl_lora.operating_system import closing_signals

SECONDS_TO_ANSWER = 1.0  # requests made before the shutdown
SECONDS_TO_CLOSE = 10  # connections that are still open then


class PageServer(uvicorn.Server):
    """Server of the page.

    Args:
        words: printed as soon as requests are answered.
    """

    def __init__(self, app, words: str):
        # The guard reads a proxy's headers itself.
        limit = SECONDS_TO_CLOSE
        super().__init__(uvicorn.Config(app, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=limit))
        self.words = words

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.words, flush=True)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(SECONDS_TO_ANSWER, self.hang_up)
        await super().shutdown(sockets)

    def hang_up(self) -> None:
        """Close all connections: an open tab would listen for as long as it is open."""
        for connection in list(self.server_state.connections):
            connection.transport.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals without raising them again afterwards as uvicorn does, which would prevent the cleanup."""
        assert threading.current_thread() is threading.main_thread()
        before = {n: signal.signal(n, self.handle_exit) for n in (signal.SIGINT, *closing_signals())}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
