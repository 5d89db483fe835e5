"""A page, a browser and what must never happen in either, for each file that asks for them."""

import pytest

from tests.helpers.ui_server import Server
from webui.runs.jobs import Jobs


@pytest.fixture(scope="module")
def story(tiny_base, tmp_path_factory):
    from tests.helpers.browser import browsing  # skips where there is no browser

    folder = tmp_path_factory.mktemp("page")
    (folder / "loras").mkdir()
    settings = {"DEFAULT_SDXL_MODEL_FOR_LORA": str(tiny_base), "LORAS_DIR": str(folder / "loras")}
    server = Server(folder, settings=settings, TRAINER_FAULT="wait@step=every")  # leaves the cores to the browser
    with browsing(server) as told:
        yield told
    jobs = Jobs(server.projects)
    for job in jobs.all():
        if process := job.process():
            process.kill()
    told.check_nothing_broke()
