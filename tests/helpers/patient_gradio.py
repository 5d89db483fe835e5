"""Patch to import before `launch`: Gradio gives up on its server after five seconds, too few for a busy machine."""

import time
from types import SimpleNamespace

from gradio import http_server

setattr(http_server, "time", SimpleNamespace(time=lambda: 0.0, sleep=time.sleep))  # noqa: B010 - a module's own name
