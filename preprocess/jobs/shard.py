"""Parallel jobs that each prepare a part of the images, on machines that share the dataset's folder.

A job stores its results on the shelves of .preprocess, whole or not at all, where a run for all parts finds them. Jobs
lock nothing but their own part, see sdxl_lora/run/lock.py.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from preprocess.jobs.processes import Team
from preprocess.jobs.state import check_free
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.lock import RunLock

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """Part `number`, from 1, of `jobs`."""

    number: int
    jobs: int

    @classmethod
    def parse(cls, text: str | None) -> "Part | None":
        return cls(*map(int, text.split("/"))) if text else None

    def share(self, items: list[Item]) -> list[Item]:
        return items[self.number - 1 :: self.jobs]


@contextlib.contextmanager
def held(output: Path, part: Part, team: Team) -> Iterator[None]:
    """Lock the part for this job; its first process holds the lock for all of them.

    Raises:
        ConfigError: another job has it, or a run for all parts is at work.
    """
    folder = output / ".preprocess" / "parts" / f"{part.number}-of-{part.jobs}"
    if team.rank > 0:
        team.wait()
        yield
        return
    for needed in (folder, output / ".preprocess" / "images", output / ".preprocess" / "under_way"):
        needed.mkdir(parents=True, exist_ok=True)
    check_free(output)
    hold = RunLock(folder)
    try:
        team.wait()
        yield
    finally:
        hold.release()


def check_all_done(output: Path) -> None:
    """Raise ConfigError if a job is still at work on its part."""
    for folder in sorted((output / ".preprocess" / "parts").glob("*-of-*")):
        try:
            RunLock(folder).release()
        except ConfigError:
            name = folder.name.replace("-of-", "/")
            raise ConfigError(f"a job is still working on part {name} of {output}: wait for it, or end it") from None
