"""WebDataset shards: tars in which files with the same name and different endings form a sample. Decodes no image.

datasets' own reader requires the same endings in every sample; here one may be a .jpg and the next a .png.
"""

import json
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from sdxl_lora.config.names import printable
from sdxl_lora.errors import DataError
from sdxl_lora.images.decode import OTHER_SUFFIXES, SUFFIXES

IMAGES = tuple(suffix[1:] for suffix in (*SUFFIXES, *OTHER_SUFFIXES))
CAPTIONS = ("txt", "caption")
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # key and ending, as in WebDataset


def tar_stream(paths: list[str]) -> datasets.IterableDataset:
    """Return the samples of tars, one file after the other; processes can read different tars."""
    return datasets.IterableDataset.from_generator(samples, gen_kwargs={"paths": paths})


def samples(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Yield samples with an image: __key__, __url__, the image under its ending, txt, json.

    Raises:
        DataError: a tar is damaged or truncated, or holds no images.
    """
    for path in paths:
        found, without = 0, []
        try:
            for sample in grouped(path):
                if any(suffix in sample for suffix in IMAGES):
                    found += 1
                    yield sample
                else:
                    without.append(sample["__key__"])
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{path} is damaged or cut short ({error}): make or download it again") from None
        if not found:
            raise DataError(f"{path} holds no images ({', '.join(IMAGES)})")
        if without:
            said = f"{path}: {len(without)} samples without an image are not used, the first is {without[0]}"
            warnings.warn(printable(said), stacklevel=2)


def grouped(path: str) -> Iterator[dict[str, Any]]:
    sample: dict[str, Any] = {}
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            match = NAME.fullmatch(member.name) if member.isfile() else None
            if match is None or Path(member.name).name.startswith("."):
                continue
            key, suffix = match[1], match[2].lower()
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            if suffix in sample:
                raise DataError(f"{path} holds {member.name} twice")
            sample |= {"__key__": key, "__url__": path}
            if suffix in (*IMAGES, *CAPTIONS, "json"):
                file = tar.extractfile(member)
                assert file is not None, member.name  # a regular file, not a link
                sample[suffix] = content_of(suffix, file.read(), f"{member.name} in {path}")
    if sample:
        yield sample


def content_of(suffix: str, data: bytes, name: str) -> Any:
    if suffix in IMAGES:
        return {"bytes": data, "path": name}
    try:
        text = data.decode("utf-8-sig")
        return json.loads(text) if suffix == "json" else text
    except ValueError as error:
        raise DataError(f"{name} is not {'JSON' if suffix == 'json' else 'UTF-8'} ({error})") from None
