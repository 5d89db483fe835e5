"""Choose the source of each crop's caption: a person's file, the captioner, or the fallback. Runs no model itself."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from preprocess.captions.caption_plan import Caption, CaptionPlan, OneCaptioner
from preprocess.captions.caption_text import NO_CAPTION, joined, without_stock_phrase
from preprocess.captions.captioner import CutOff
from preprocess.images.prepare import Prepared, Refused
from preprocess.jobs.processes import Team
from preprocess.jobs.state import Shelf
from preprocess.sources.previous_run import Memory
from sdxl_lora.folders.found import Source
from sdxl_lora.images.decode import open_image


@dataclasses.dataclass(slots=True)
class Entry:
    """A crop and its captions."""

    source: Source
    prepared: Prepared
    caption: str = ""  # bare: without trigger word, prefix and suffix
    more_captions: list[str] = dataclasses.field(default_factory=list)  # further captions, where there are several
    raw_caption: str = ""  # as the captioner gave it
    caption_from: str = ""  # a file's name, "captioner" or "fallback"
    warnings: list[str] = dataclasses.field(default_factory=list)


def caption_all(
    entries: list[Entry], plan: CaptionPlan, memory: Memory, output: Path, team: Team
) -> tuple[list[Refused], int]:
    """Caption every entry; return the images on which a captioner failed and the number of new texts."""
    wanted = []
    for entry in entries:
        if entry.source.caption is not None:
            entry.caption, *entry.more_captions = given_captions(entry.source, plan.per_line)
            entry.caption_from = entry.source.caption_from or ""
        elif not plan.captioners:
            entry.caption, entry.caption_from = plan.fallback or entry.source.class_words, "fallback"
            entry.warnings.append(NO_CAPTION)
        elif plan.recaption or not edited_by_hand(entry, memory):
            wanted.append(entry)
    said: list[list[tuple[str, str]]] = []
    new = 0
    for captioner in plan.captioners if wanted else ():
        texts, new_texts = machine_captions(wanted, captioner, plan.recaption, output, team)
        said, new = [*said, texts], new + new_texts
    failed = []
    for entry, of_entry in zip(wanted, zip(*said, strict=True), strict=True):
        if reason := next((reason for _, reason in of_entry if reason), ""):
            failed.append(Refused(entry.source.name, reason))
        take_texts(entry, [text for text, _ in of_entry], plan)
    return failed, new


def given_captions(source: Source, per_line: bool) -> list[str]:
    """Return the captions that a person wrote for an image; with `per_line`, each line is a caption of its own."""
    return list((per_line and source.lines) or source.captions or [source.caption or ""])


def take_texts(entry: Entry, texts: list[str], plan: CaptionPlan) -> None:
    """Set the captions of an entry from the texts of its captioners."""
    if any(isinstance(text, CutOff) for text in texts):
        entry.warnings.append(f"caption cut off at caption_max_new_tokens {plan.max_new_tokens}: raise it")
    if not any(texts):
        entry.warnings.append("no tag is likely enough: lower tag_threshold, or write its caption")
    entry.raw_caption, entry.caption_from = " / ".join(filter(None, texts)), "captioner"
    entry.caption, *entry.more_captions = captions_of(texts, plan)


def captions_of(texts: list[str], plan: CaptionPlan) -> list[str]:
    """Return the captions of an image from the texts of its captioners: joined into one, or each on its own."""
    clean = [without_stock_phrase(text) if plan.clean else text for text in texts]
    said = list(dict.fromkeys(text for text in clean if text)) or [""]
    return said if plan.is_several else [joined(said)]


def warn_of_text(entries: list[Entry], reader: CaptionPlan, output: Path, team: Team) -> None:
    """Warn of text in the images: a LoRA learns watermarks and signatures before anything else."""
    texts, _ = machine_captions(entries, reader.captioners[0], reader.recaption, output, team)
    for entry, (text, reason) in zip(entries, texts, strict=True):
        if text or reason:
            entry.warnings.append(f"text in the image: {text[:80]!r}" if text else f"text not read: {reason}")


def edited_by_hand(entry: Entry, memory: Memory) -> bool:
    """Return whether a person has edited every row of this crop, so that a captioner's text would go unused."""
    first = entry.prepared.crop_index * entry.source.repeats
    numbers = range(first, first + entry.source.repeats)
    return all(memory.edited_text(entry.source.name, entry.prepared.sha256, number) is not None for number in numbers)


def caption_key(entry: Entry, captioner: str) -> str:
    text = f"{Path(entry.prepared.file_name).name}\0{captioner}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def machine_captions(
    entries: list[Entry], captioner: OneCaptioner, recaption: bool, output: Path, team: Team
) -> tuple[list[tuple[str, str]], int]:
    """Return (text, reason of failure) for each entry, one of them empty, and the number asked of the captioner."""
    hidden = output / ".preprocess"
    shelf, content = Shelf(hidden / "captions"), captioner.content(hidden)
    keys = [caption_key(entry, content) for entry in entries]
    old = {key: caption_key(entry, captioner.name) for key, entry in zip(keys, entries, strict=True)}
    texts: dict[str, tuple[str, str]] = {}
    for key in [] if recaption else old:
        record = shelf.get(key, text_of)
        record = shelf.get(old[key], text_of) if record is None else record
        if record is not None:
            texts[key] = record, ""
    for key, entry in zip(keys, entries, strict=True):
        if {key, old[key]} & shelf.damaged:
            entry.warnings.append("its stored caption was damaged: captioned again")
    missing = [(key, entry) for key, entry in dict(zip(keys, entries, strict=True)).items() if key not in texts]
    team.wait()  # every process has read the shelf before any changes it
    if team.rank == 0:
        for key in old:  # once, so that old captions do not return when the captioner's files change
            shelf.rename(old[key], None if recaption else key)
    mine: list[tuple[str, tuple[str, str]]] = []
    if share := team.share(missing):
        with captioner.load() as caption, tqdm(total=len(share), desc="captions", unit="img") as bar:
            while batch := share[len(mine) : len(mine) + caption.batch_size]:
                images = [open_crop(output, entry.prepared) for _, entry in batch]
                for (key, _), (text, reason) in zip(batch, caption_batch(caption, images), strict=True):
                    mine.append((key, (text, reason)))
                    if not reason:
                        shelf.put(key, {"text": text, "cut_off": True} if isinstance(text, CutOff) else text)
                bar.update(len(batch))
    texts |= dict(team.gather(mine))
    return [texts[key] for key in keys], len(missing)


def text_of(record: Any) -> str:
    """Return a caption from its record on the shelf.

    Raises:
        KeyError, TypeError: the record is no caption.
    """
    text = record["text"] if isinstance(record, dict) else record
    if not isinstance(text, str):
        raise TypeError(f"a stored caption is {record!r}, it must be text")
    return CutOff(text) if isinstance(record, dict) else text


def open_crop(output: Path, prepared: Prepared) -> Image.Image:
    """Open a crop as training will read it, whether or not it is published yet."""
    published = output / prepared.file_name
    path = published if published.exists() else output / ".preprocess" / "images" / published.name
    return open_image(path).convert("RGB")


def caption_batch(caption: Caption, images: list[Image.Image]) -> list[tuple[str, str]]:
    """Return (text, reason of failure) for each image. One that fails or stays empty in a batch is retried alone."""
    try:
        texts = caption(images)
        assert len(texts) == len(images)
    except Exception as error:  # one image must not cost the others their captions
        if is_out_of_memory(error):
            raise
        return [caption_alone(caption, image) for image in images]
    return [
        (text, "") if text or caption.may_be_empty else caption_alone(caption, image)
        for text, image in zip(texts, images, strict=True)
    ]


def caption_alone(caption: Caption, image: Image.Image) -> tuple[str, str]:
    try:
        text = caption([image])[0]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return "", f"the captioner failed twice ({type(error).__name__}: {error})"
    return (text, "") if text or caption.may_be_empty else ("", "the captioner returned no text, twice")


def is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
