"""A prepared dataset as HTML: what there is of it, and a card for each row."""

from html import escape
from pathlib import Path

from preprocess.output.html_report import crop_in_percent
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from webui.locale.i18n import in_page_words, say, say_label
from webui.runs import dataset_view as datasets
from webui.runs.context import dataset_name
from webui.server.served import IMAGES
from webui.widgets.images import image_html


def about_html(dataset: datasets.Dataset, page: int, last: int, which: str = "", found: int | None = None) -> str:
    """Counts, and what was left out with its reason.

    Args:
        found: so many images fit what is searched for.
    """
    troubled = sum(bool(image.problems) for image in dataset.images)
    facts = [
        (len(dataset.images), say("images")),
        (troubled, say("to look at")),
        (len(dataset.left_out), say("left out")),
        (dataset.trigger_word or "—", say("trigger word")),
    ]
    if found is not None and found != len(dataset.images):
        facts.append((found, say("in the search")))
    if last:
        facts.append((f"{page + 1} / {last + 1}", say("page")))
    numbers = "".join(f"<div><b>{escape(str(value))}</b>{escape(label)}</div>" for value, label in facts)
    left_out = "".join(
        f"<li><b>{escape(source)}</b> {escape(in_page_words(PreprocessConfig, reason))}</li>"
        for source, reason in dataset.left_out
    )
    details = (
        f"<details><summary>{escape(say('Left out, and why'))}</summary><ul>{left_out}</ul></details>"
        if left_out
        else ""
    )
    return f'<div class="card" data-which="{escape(which)}"><div class="facts">{numbers}</div>{details}</div>'


def card_html(folder: Path, shown: datasets.DatasetImage, saved: bool = False) -> str:
    """The whole picture with its crop framed, problems, sizes and tokens; the caption itself is the text box below."""
    facts = shown.facts
    thumbnail = datasets.own_file(folder, f".preprocess/thumbnails/{facts.get('thumbnail', '')}.jpg")
    own = datasets.own_file(folder, shown.file_name)
    if facts and thumbnail:
        left, top, width, height = crop_in_percent(facts)
        frame = f'<span style="left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%"></span>'
        image = f'<div class="frame">{image_html(thumbnail, shown.source, own)}{frame}</div>'
    else:
        image = f'<div class="frame">{image_html(own, shown.source)}</div>'
    told = (in_page_words(PreprocessConfig, problem) for problem in shown.problems)
    problems = "".join(f"<li>{escape(words)}</li>" for words in told)
    sizes = ""
    if facts:
        (height, width), bucket = facts["original_size"], facts["bucket"]
        cut = say("{percent} cut off", percent=f"{facts['cut_off']:.0%}")
        sizes = f"{width}x{height} → {bucket[0]}x{bucket[1]}, {cut} · "
    tokens = say("{tokens} tokens", tokens=f"≥ {shown.tokens}" if shown.at_least else shown.tokens)
    paint = ""
    if own is not None and own.suffix.lower() in IMAGES:  # a browser shows no other, and nothing can be painted over it
        mask = datasets.own_file(folder, shown.mask) if shown.mask else None
        of_row = {"dataset": dataset_name(folder), "file": shown.file_name, "seen": shown.mask, "words": shown.source}
        paint = paint_html(own, mask, **of_row)
    mark = f' <b class="saved">{escape(say("saved"))}</b>' if saved else ""
    return (
        f'{image}<div class="about" data-text="{escape(shown.text)}"><strong>{escape(shown.source)}</strong>{mark}<br>'
        f"{escape(sizes + tokens)}</div>{paint}"
        f"{f'<ul class=problems>{problems}</ul>' if problems else ''}"
    )


def paint_html(image: Path, mask: Path | None, **facts: str) -> str:
    """A button that opens paint.js, and whether there is a mask.

    Args:
        image, mask: files.
        facts: of the row, for paint.js: `dataset` and `words` for the image; `file` and `seen`, names of both files.
    """
    label = say("Change the mask") if mask else say("Paint a mask")
    counts = say_label(TrainConfig, "masked_loss")
    data = {"path": str(image), "mask": str(mask or ""), "label": counts, **facts}
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    name, note = escape(f"{label}: {facts['words']}"), say("part of it is not learned") if mask else ""
    button = f'<button type="button" class="tag paint" aria-label="{name}" {attributes}>{escape(label)}</button>'
    return f'<div class="tags about">{button}{escape(note)}</div>'
