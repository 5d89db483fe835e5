"""Memo of slow results with the facts they were made from, so that a second start need not recompute them.

It is one JSON file beside the caches. A file counts as unchanged while its path, size and modification time are.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdxl_lora.io.file_system import replace


class FileMemo:
    """Memo file: `get_or_compute` returns stored results, `save` writes new ones, whole or not at all.

    path: None for a memo that stores nothing.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.results, self.is_new = path, {}, False
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except OSError:  # no memo yet
            found = {}
        except ValueError:
            found = None
        if isinstance(found, dict):
            self.results = found
        else:
            warnings.warn(f"{path} is damaged and will be made again", stacklevel=2)

    def get_or_compute(
        self, facts: Iterable, make: Callable[[], Any], fits: Callable[[Any], bool] = lambda _: True
    ) -> Any:
        """Return the stored result for equal facts, else call `make`, also if `fits` rejects the stored one.

        Results are JSON values; None is not stored.
        """
        if self.path is None:
            return make()
        key = "|".join(map(str, facts))
        if key not in self.results or not fits(self.results[key]):
            result = make()
            if result is None:
                return None
            self.results[key], self.is_new = result, True
        return self.results[key]

    def save(self) -> None:
        if self.path is None or not self.is_new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".tmp-{os.getpid()}-{self.path.name}")
        temporary.write_text(json.dumps(self.results), encoding="utf-8")
        replace(temporary, self.path)
        self.is_new = False


NO_MEMO = FileMemo()


def file_stamp(path: Path | str) -> tuple[str, int, int]:
    """Return a file's path, size and modification time."""
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns
