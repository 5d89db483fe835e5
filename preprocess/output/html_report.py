"""report.html: a self-contained page to judge a dataset in two minutes, problems first.

All text of persons and files is escaped; the page holds no script and loads nothing.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path

from preprocess.images.image_files import encoded
from sdxl_lora.images.decode import ImageError, open_image, upright_rgb

MOST_CARDS = 300  # beyond these the page would be slow to open; problems come first, then every n-th image
MOST_LEFT_OUT = 60
MOST_NAMES = 500

STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #2a78d6; --bad: #c23b2e; --card: #8881; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
.facts div { background: var(--card); border-radius: 8px; padding: .5rem .9rem; min-width: 6rem }
.facts b { display: block; font-size: 1.35rem } .bad b { color: var(--bad) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 2rem }
.bar { display: grid; grid-template-columns: 6.5rem 1fr 9.5rem; align-items: center; gap: .5rem; font-size: .85rem }
.bar i { display: block; height: .85rem; border-radius: 0 4px 4px 0; background: var(--accent) }
.bar.over i { background: var(--bad) }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem; align-items: start }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .6rem; overflow-wrap: anywhere; font-size: .85rem }
.card p { margin: .4rem 0; max-height: 9em; overflow: auto } .card .name { opacity: .75 } .problem { color: var(--bad) }
.frame { position: relative; overflow: hidden; display: inline-block; line-height: 0; border-radius: 4px }
.frame img { max-width: 100%; } .frame span { position: absolute; outline: 2px solid #fff;
  box-shadow: 0 0 0 9999px #000a, inset 0 0 0 1px #000; }
del { opacity: .65 } ins { text-decoration: none; font-weight: 600 } .note { opacity: .75 }
"""


def page(report: dict, output: Path, paths: Mapping[str, Path]) -> Iterator[str]:
    """Yield the page's HTML in pieces: with its images it is larger than all other data of the run.

    Args:
        report: the result of report_of.
        output: the dataset's folder, for its thumbnails.
        paths: source name -> file, for images that were left out.
    """
    problems, common = problems_of(report)
    rows = report["rows"]
    names = {row["source"] for row in rows}
    odd = [row for row in rows if row["source"] in problems]
    fine = [row for row in rows if row["source"] not in problems]
    shown_odd = odd[:MOST_CARDS]
    step = max(1, -(-len(fine) // max(1, MOST_CARDS - len(shown_odd))))
    shown_fine = fine[::step] if len(shown_odd) < MOST_CARDS else []
    left_out = report["left_out"]
    yield head(report, output.resolve().name)
    for message, count in common.items():
        yield f'<p class="problem">{count} images: {escape(message)}</p>'
    for name, messages in problems.items():
        for message in messages if name not in names else ():
            yield f'<p class="problem">{escape(name)}: {escape(message)}</p>'
    yield from name_list("Folders", [(entry["source"], entry["message"]) for entry in report["folders"]])
    yield from name_list("Other files", [(entry["source"], entry["reason"]) for entry in report["other_files"]])
    yield from section("Left out", len(left_out), left_out[:MOST_LEFT_OUT], partial(left_out_card, paths=paths))
    show = partial(card, problems=problems, output=output)
    yield from section("To look at", len(odd), shown_odd, show)
    yield charts(report)
    yield from section("Fine", len(fine), shown_fine, show)


def problems_of(report: dict) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return messages by image, and apart from them, with a count, messages that more than half of the images share."""
    counts = Counter(warning["message"] for warning in report["warnings"])
    common = {message: n for message, n in counts.items() if n > max(4, report["counts"]["used"] / 2)}
    problems: dict[str, list[str]] = {}
    for warning in report["warnings"]:
        if warning["message"] not in common:
            problems.setdefault(warning["source"], []).append(warning["message"])
    return problems, common


def head(report: dict, name: str) -> str:
    counts, trigger = report["counts"], report["settings"]["trigger_word"]
    pieces = report["trigger_word_tokens"]
    trigger_label = f"trigger word, {len(pieces)} token{'s' * (len(pieces) != 1)}" if trigger else "trigger word"
    facts = [
        (counts["used"], f"of {counts['found']} images used", ""),
        (counts["left_out"], "left out", "bad" if counts["left_out"] else ""),
        (len(report["buckets"]), "sizes", ""),
        (counts["rows"], "rows", ""),
        (trigger or "none", trigger_label, ""),
    ]
    boxes = "".join(
        f'<div class="{kind}"><b>{escape(str(fact))}</b>{escape(label)}</div>' for fact, label, kind in facts
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}: dataset report</title><style>{STYLE}</style>"
        f'<h1>{escape(name)}</h1><div class="note">Prepared for training. Each image is shown whole; training sees '
        f'what is inside the white frame.</div><div class="facts">{boxes}</div>'
    )


def section(title: str, total: int, shown: list[dict], card_of: Callable[[dict], str]) -> Iterator[str]:
    """Yield a heading and a card for each image shown; nothing if `total` is 0."""
    if not total:
        return
    yield f"<h2>{escape(title)}: {total}</h2>"
    if len(shown) < total:
        yield f'<p class="note">{len(shown)} of {total} shown; preprocess_report.json lists all.</p>'
    yield "<div class='cards'>"
    yield from map(card_of, shown)
    yield "</div>"


def name_list(title: str, items: list[tuple[str, str]]) -> Iterator[str]:
    """Yield a heading and a line for each name with its message; nothing if there are none."""
    if not items:
        return
    yield f"<h2>{escape(title)}: {len(items)}</h2><ul>"
    yield from (f"<li><b>{escape(name)}</b>: {escape(words)}</li>" for name, words in items[:MOST_NAMES])
    yield "</ul>"
    if len(items) > MOST_NAMES:
        yield f'<p class="note">{MOST_NAMES} of {len(items)} shown; preprocess_report.json lists all.</p>'


def left_out_card(entry: dict, paths: Mapping[str, Path]) -> str:
    return (
        f'<div class="card">{thumbnail_of(paths.get(entry["source"]))}<p class="problem">{escape(entry["reason"])}</p>'
        f'<p class="name">{escape(entry["source"])}</p></div>'
    )


def thumbnail_of(path: Path | None) -> str:
    """Return the thumbnail of an image that was left out; "" if it cannot be opened."""
    try:
        image = upright_rgb(open_image(path)) if path else None
    except ImageError:
        return ""
    if image is None:
        return ""
    image.thumbnail((240, 240))
    return f'<div class="frame">{img(encoded(image, "JPEG", {"quality": 75}))}</div>'


def img(jpeg: bytes) -> str:
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def card(row: dict, problems: Mapping[str, list[str]], output: Path) -> str:
    """Return the card of one image: the whole image with its crop, problems, caption and sizes."""
    thumbnail = output / ".preprocess" / "thumbnails" / f"{row['thumbnail']}.jpg"
    image = img(thumbnail.read_bytes()) if thumbnail.exists() else ""
    left, top, width, height = crop_in_percent(row)
    frame = f'<span style="left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%"></span>'
    said = "".join(f'<p class="problem">{escape(message)}</p>' for message in problems.get(row["source"], []))
    words = "<br>".join(escape(text) or "<em>no text</em>" for text in row.get("captions") or [row["text"]])
    if row["raw_caption"] and row["raw_caption"] != row["caption"]:
        words += f"<br><del>{escape(row['raw_caption'])}</del>"
    h, w = row["original_size"]
    facts = f"{w}x{h} → {row['bucket'][0]}x{row['bucket'][1]}, {row['cut_off']:.0%} cut off, {row['tokens']} tokens"
    return (
        f'<div class="card"><div class="frame">{image}{frame}</div>{said}<p>{words}</p>'
        f'<p class="name">{escape(row["source"])}<br>{facts}<br>caption from {escape(row["text_from"])}</p></div>'
    )


def crop_in_percent(row: dict) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the crop in percent of the whole image."""
    original_height, original_width = row["original_size"]
    width, height = row["bucket"]
    scale = max(width / original_width, height / original_height)
    resized_width, resized_height = (
        max(width, round(original_width * scale)),
        max(height, round(original_height * scale)),
    )
    top, left = row["crop_top_left"]
    return (
        100 * left / resized_width,
        100 * top / resized_height,
        100 * width / resized_width,
        100 * height / resized_height,
    )


def charts(report: dict) -> str:
    batch = report["settings"].get("train_batch_size", 1)
    buckets = [
        (
            f"{b['size'][0]}x{b['size'][1]}",
            b["pictures"],
            f"{b['pictures']}, {b['mean_cut_off']:.0%} cut off" + (" (under a batch)" if b["pictures"] < batch else ""),
            b["pictures"] < batch,
        )
        for b in report["buckets"]
    ]
    limit, lengths = report["tokens"]["limit"], Counter(min(row["tokens"] // 15, 12) for row in report["rows"])
    captions = [
        (
            f"{15 * k}-{15 * k + 14}" if k < 12 else "180 or more",
            lengths[k],
            str(lengths[k]),
            15 * k >= limit,
        )
        for k in range(max(lengths, default=0) + 1)
    ]
    return (
        f'<div class="charts"><div><h2>Sizes</h2>{bars(buckets)}</div><div><h2>Caption lengths, in tokens</h2>'
        f'{bars(captions)}<p class="note">Counted by {escape(report["tokens"]["counted_by"])}. '
        f"Beyond {limit}, CLIP needs a second chunk.</p></div></div>"
    )


def bars(values: list[tuple[str, int, str, bool]]) -> str:
    """Return horizontal bars from (label, value, words behind the bar, is marked)."""
    most = max((value for _, value, _, _ in values), default=1) or 1
    return "".join(
        f'<div class="bar{" over" * marked}"><span>{escape(label)}</span>'
        f'<i style="width:{100 * value / most:.1f}%"></i><span>{escape(words)}</span></div>'
        for label, value, words, marked in values
    )
