"""HTML for images of a prepared dataset, and of a folder before its preparation."""

from collections.abc import Collection
from pathlib import Path

from preprocess.dry_run import size_of
from preprocess.editing import prepared as datasets
from preprocess.images.crop import bucket_of
from preprocess.output.html_report import crop_in_percent
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.data.buckets import Size, kept_share
from sdxl_lora.folders.found import Found, Source
from sdxl_lora.images.decode import ImageError
from webui.locale.i18n import say
from webui.runs.context import dataset_name
from webui.server.served import IMAGES
from webui.widgets import templates

MOST_MEASURED = 1000  # images whose headers are read at once


def card_html(folder: Path, shown: datasets.DatasetImage, saved: bool = False) -> str:
    """Return a card: the whole image with its crop framed, problems, sizes and tokens. The caption has its own box."""
    facts, own = shown.facts, datasets.own_file(folder, shown.file_name)
    thumbnail = datasets.own_file(folder, f".preprocess/thumbnails/{facts.get('thumbnail', '')}.jpg") if facts else None
    painted = None
    if own is not None and own.suffix.lower() in IMAGES:  # browsers show no others, so those cannot be painted over
        mask = datasets.own_file(folder, shown.mask) if shown.mask else None
        painted = {"dataset": dataset_name(folder), "mask": mask}
    crop = crop_in_percent(facts) if facts else None
    return templates.datasets.card(shown, own, thumbnail, crop, painted, saved)


def images_html(
    found: Found,
    with_images: bool,
    count: int = 24,
    config: PreprocessConfig | None = None,
    taken_out: Collection[str] = (),
) -> str:
    """Return counts, unused files with reasons, and the first `count` images, each with the crop to come.

    Args:
        config: the settings to prepare them with, if known.
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
    reasons |= {source.name: say("left out by you") for source in found.sources if source.name in taken_out}
    used = [source for source in found.sources if source.name not in reasons]
    captioned = sum(source.caption is not None for source in used)

    def planned(source: Source) -> dict:
        own = sizes.get(source.name) if source.name not in reasons else None
        is_framed = own is not None and config is not None and config.images.crop == "center"
        return {
            "name": source.name,
            "path": source.path,
            "is_out": source.name in taken_out,
            "plan": (*own, 1 - kept_share(*own)) if own else None,
            "crop": center_in_percent(*own) if own and is_framed else None,
        }

    shown = [planned(source) for source in found.sources[:count]] if with_images else []
    return templates.datasets.folder(shown, len(used), captioned, reasons, len(found.sources) - len(shown))


def center_in_percent(size: Size, bucket: Size) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a centre crop in percent of the whole image."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    top_left = [(max(bucket[at], round(size[at] * scale)) - bucket[at]) // 2 for at in (1, 0)]
    return crop_in_percent({"original_size": size[::-1], "bucket": bucket, "crop_top_left": top_left})
