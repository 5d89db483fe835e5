"""A folder of images as HTML, before it is prepared: each with what will be cut off, or why it will not be used."""

from collections.abc import Collection
from html import escape

from preprocess.dry_run import size_of
from preprocess.images.crop import bucket_of
from preprocess.output.html_report import crop_in_percent
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.data.buckets import Size, kept_share
from sdxl_lora.folders.found import Found, Source
from sdxl_lora.images.decode import ImageError
from webui.locale.i18n import in_page_words, say
from webui.widgets.images import image_html

MOST_NAMED = 100
MOST_MEASURED = 1000  # images whose headers are read while a person waits


def images_html(
    found: Found,
    with_images: bool,
    count: int = 24,
    config: PreprocessConfig | None = None,
    taken_out: Collection[str] = (),
) -> str:
    """Counts, what is not used and why, and the first `count` images.

    Args:
        config: what they are to be prepared with, where that is known.
        taken_out: names of images that the person does not want.
    """
    sizes: dict[str, tuple[Size, Size]] = {}
    reasons = {**found.left_out, **found.other_files}
    for source in found.sources[:MOST_MEASURED]:
        if config is None:
            break
        try:
            size = size_of(source, config.images.max_megapixels)
            sizes[source.name] = (size, bucket_of(config.sizes, size))
        except ValueError as error:
            reasons[source.name] = error.reason if isinstance(error, ImageError) else str(error)
    reasons |= {source.name: say("taken out by you") for source in found.sources if source.name in taken_out}
    used = [source for source in found.sources if source.name not in reasons]
    facts = [
        (len(used), say("images")),
        (sum(source.caption is not None for source in used), say("with a caption")),
        (len(reasons), say("files not used")),
    ]
    numbers = "".join(f"<div><b>{number}</b>{escape(label)}</div>" for number, label in facts)
    shown = found.sources[:count] if with_images else []
    is_framed = config is not None and config.images.crop == "center"
    images = "".join(
        figure_html(source, sizes.get(source.name), is_framed, reasons.get(source.name), taken_out) for source in shown
    )
    more = len(found.sources) - len(shown)
    words = escape(say("Show {count} more", count=min(more, 24)))
    button = f'<button type="button" class="tag" data-more>{words}</button>' if shown and more else ""
    return (
        f'<div class="card"><div class="facts">{numbers}</div>{unused_html(reasons)}'
        f'<div class="thumbnails cards">{images}</div>{button}</div>'
    )


def figure_html(
    source: Source,
    sizes: tuple[Size, Size] | None,
    is_framed: bool,
    reason: str | None,
    taken_out: Collection[str],
) -> str:
    """One image, what is kept of it framed, and the button that takes it out or brings it back.

    Args:
        sizes: its own and the one that it is cut to, width and height in pixels.
        reason: why it will not be used.
    """
    is_out = source.name in taken_out
    image, facts = image_html(source.path, source.name), ""
    if sizes and reason is None:
        (width, height), bucket = sizes
        cut = say("{percent} cut off", percent=f"{1 - kept_share(*sizes):.0%}")
        facts = f"<br>{width}x{height} → {bucket[0]}x{bucket[1]}, {escape(cut)}"
        if is_framed:
            scale = max(bucket[0] / width, bucket[1] / height)
            top_left = [(max(bucket[at], round(sizes[0][at] * scale)) - bucket[at]) // 2 for at in (1, 0)]
            box = crop_in_percent({"original_size": [height, width], "bucket": list(bucket), "crop_top_left": top_left})
            left, top, wide, high = box
            image += f'<span style="left:{left:.2f}%;top:{top:.2f}%;width:{wide:.2f}%;height:{high:.2f}%"></span>'
    elif reason is not None:
        facts = f'<br><b class="problems">{escape(in_page_words(PreprocessConfig, reason))}</b>'
    label = say("Use it after all") if is_out else say("Not this one")
    button = (
        f'<button type="button" class="tag" data-leave-out="{escape(source.name)}" '
        f'aria-label="{escape(label)}: {escape(source.name)}">{escape(label)}</button>'
    )
    return (
        f'<figure{" class=out" if reason is not None else ""}><div class="frame">{image}</div>'
        f"<figcaption><strong>{escape(source.name)}</strong>{facts}</figcaption>{button}</figure>"
    )


def unused_html(unused: dict[str, str]) -> str:
    if not unused:
        return ""
    lines = "".join(
        f"<li><b>{escape(name)}</b> {escape(in_page_words(PreprocessConfig, why))}</li>"
        for name, why in list(unused.items())[:MOST_NAMED]
    )
    return f"<details><summary>{escape(say('Not used, and why'))}</summary><ul>{lines}</ul></details>"
