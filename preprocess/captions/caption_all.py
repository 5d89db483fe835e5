"""Which crop gets its words from whom: a person's file, the captioner, or the fallback. Runs no model itself."""

import dataclasses
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from preprocess.captions.caption_text import without_stock_phrase
from preprocess.images.prepare import Prepared, Refused
from preprocess.jobs.processes import Team
from preprocess.jobs.state import Shelf
from preprocess.sources.find import Source
from preprocess.sources.previous_run import Memory

Caption = Callable[[list[Image.Image]], list[str]]  # as many texts as pictures


@dataclasses.dataclass(frozen=True)
class CaptionPlan:
    """Who writes the captions that no person has written.

    Attributes:
        name: model, task and options; a caption is made again where any of it differs.
        load: context manager of the captioner, which frees it; None for no captioner. The captioner says by its
            attribute batch_size how many pictures it wants next.
        check: raises ConfigError, before any work, where the captioner could not be loaded.
        clean: leave out stock phrases such as "The image shows".
        may_be_empty: no words are an answer, and not a failure.
    """

    name: str = "none"
    load: Callable[[], AbstractContextManager[Caption]] | None = None
    check: Callable[[], None] = lambda: None
    fallback: str = ""
    clean: bool = True
    recaption: bool = False
    may_be_empty: bool = False


@dataclasses.dataclass(slots=True)
class Entry:
    """One crop and the words for it."""

    source: Source
    prepared: Prepared
    caption: str = ""  # bare: without trigger word, prefix and suffix
    raw_caption: str = ""  # as the captioner gave it
    caption_from: str = ""  # a file's name, "captioner" or "fallback"
    warnings: list[str] = dataclasses.field(default_factory=list)


def caption_all(
    entries: list[Entry], plan: CaptionPlan, memory: Memory, output: Path, team: Team
) -> tuple[list[Refused], int]:
    """Gives every entry its caption; returns the pictures that the captioner failed on, and how many it did anew."""
    wanted = []
    for entry in entries:
        if entry.source.caption is not None:
            entry.caption, entry.caption_from = entry.source.caption, entry.source.caption_from
        elif plan.load is None:
            entry.caption, entry.caption_from = plan.fallback or entry.source.class_words, "fallback"
            entry.warnings.append("no caption: the fallback is used")
        elif plan.recaption or not edited_by_hand(entry, memory):
            wanted.append(entry)
    texts, new = machine_captions(wanted, plan, output, team) if wanted else ({}, 0)
    failed = []
    for entry in wanted:
        text, reason = texts[caption_key(entry, plan)]
        if reason:
            failed.append(Refused(entry.source.name, reason))
        entry.raw_caption, entry.caption_from = text, "captioner"
        entry.caption = without_stock_phrase(text) if plan.clean else text
    return failed, new


def warn_of_text(entries: list[Entry], reader: CaptionPlan, output: Path, team: Team) -> None:
    """Warns of writing in the pictures: a LoRA learns watermarks and signatures before anything else."""
    texts, _ = machine_captions(entries, reader, output, team)
    for entry in entries:
        text, reason = texts[caption_key(entry, reader)]
        if text or reason:
            entry.warnings.append(f"text in the picture: {text[:80]!r}" if text else f"not read for text: {reason}")


def edited_by_hand(entry: Entry, memory: Memory) -> bool:
    """Whether every row of this crop holds a person's words, so that a captioner's would go unused."""
    first = entry.prepared.crop_index * entry.source.repeats
    numbers = range(first, first + entry.source.repeats)
    return all(memory.edited_text(entry.source.name, entry.prepared.sha256, number) is not None for number in numbers)


def caption_key(entry: Entry, plan: CaptionPlan) -> str:
    text = f"{Path(entry.prepared.file_name).name}\0{plan.name}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def machine_captions(
    entries: list[Entry], plan: CaptionPlan, output: Path, team: Team
) -> tuple[dict[str, tuple[str, str]], int]:
    """Text and reason of failure, one of them empty, by caption_key; and how many the captioner was asked for."""
    shelf = Shelf(output / ".preprocess" / "captions")
    known = {} if plan.recaption else {key: shelf.get(key) for key in (caption_key(e, plan) for e in entries)}
    texts = {key: (text, "") for key, text in known.items() if text is not None}
    missing = {caption_key(entry, plan): entry for entry in entries}
    missing = [(key, entry) for key, entry in missing.items() if key not in texts]
    team.wait()  # all have looked at the shelf before anyone adds to it
    mine = []
    if share := team.share(missing):
        with plan.load() as caption, tqdm(total=len(share), desc="captions", unit="img") as bar:
            while batch := share[len(mine) : len(mine) + caption.batch_size]:
                images = [open_crop(output, entry.prepared) for _, entry in batch]
                for (key, _), (text, reason) in zip(
                    batch, caption_batch(caption, images, plan.may_be_empty), strict=True
                ):
                    mine.append((key, (text, reason)))
                    if not reason:
                        shelf.put(key, text)
                bar.update(len(batch))
    return texts | dict(team.gather(mine)), len(missing)


def open_crop(output: Path, prepared: Prepared) -> Image.Image:
    """The crop as it will be trained, published or not."""
    published = output / prepared.file_name
    path = published if published.exists() else output / ".preprocess" / "images" / published.name
    with Image.open(path, formats=["PNG", "WEBP", "JPEG"]) as image:
        return image.convert("RGB")


def caption_batch(caption: Caption, images: list[Image.Image], may_be_empty: bool = False) -> list[tuple[str, str]]:
    """Text and reason of failure for each picture. What fails in company or stays empty is tried once more, alone."""
    try:
        texts = caption(images)
        assert len(texts) == len(images)
    except Exception as error:  # one picture must not cost the others their captions
        if is_out_of_memory(error):
            raise
        return [caption_alone(caption, image, may_be_empty) for image in images]
    return [
        (text, "") if text or may_be_empty else caption_alone(caption, image)
        for text, image in zip(texts, images, strict=True)
    ]


def caption_alone(caption: Caption, image: Image.Image, may_be_empty: bool = False) -> tuple[str, str]:
    try:
        text = caption([image])[0]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return "", f"the captioner failed twice ({type(error).__name__}: {error})"
    return (text, "") if text or may_be_empty else ("", "the captioner gave no words, twice")


def is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
