"""Plan of a run from the headers of the files: decodes no image and writes nothing."""

import warnings
from collections import Counter

from preprocess.captions.caption_plan import plan_of
from preprocess.images.crop import bucket_of
from preprocess.output.report import listing, other_files
from sdxl_lora.config.names import printable
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.folders.found import Found, Source
from sdxl_lora.images.colour import ImageWarning
from sdxl_lora.images.decode import ImageError, image_header, upright_size


def plan_lines(found: Found, config: PreprocessConfig) -> str:
    """Return the lines of the plan.

    Raises:
        ConfigError: a captioner is needed and cannot be loaded.
    """
    plan, sizes = plan_of(config), Counter[tuple[int, int]]()
    left_out = dict(found.left_out)
    for source in found.sources:
        try:
            size = size_of(source, config.images.max_megapixels)
            sizes[bucket_of(config.sizes, size)] += 1
        except ImageError as error:
            left_out[source.name] = error.reason
        except ValueError as error:
            left_out[source.name] = str(error)
    rows = sum(source.repeats for source in found.sources)
    with_repeats = f", {rows} with repeats" if rows > len(found.sources) else ""
    without = sum(source.caption is None for source in found.sources)
    if plan.captioners and without:
        plan.check()
    who = "the captioner" if plan.captioners else "the fallback caption"
    return "\n".join(
        [
            f"{len(found.sources)} images{with_repeats}, {len(left_out)} would be left out:",
            *(f"  {printable(f'{name}: {reason}')}" for name, reason in sorted(left_out.items())),
            *listing("folders", [printable(f"{name}: {note}") for name, note in sorted(found.notes.items())]),
            *listing("other files", [printable(f"{name}: {reason}") for name, reason in other_files(found)]),
            *listing(
                "warnings", [printable(f"{name}: {text}") for name, texts in found.warnings.items() for text in texts]
            ),
            "sizes:",
            *(f"  {w}x{h}: {count}" for (w, h), count in sorted(sizes.items())),
            f"captions: {len(found.sources) - without} from files, {without} from {who}",
            "nothing was written: a dry run reads only headers, and damaged images are found when they are decoded",
        ]
    )


def size_of(source: Source, max_megapixels: float) -> tuple[int, int]:
    """Return the width and height of an image that a run can use, as far as headers tell.

    Raises:
        ValueError: the header of the image or of its mask shows that it would be left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # the run reports it
        size = upright_size(image_header(source.path, source.path, max_megapixels))
        if source.mask is not None:
            try:
                mask_size = upright_size(image_header(source.mask, source.mask, max_megapixels))
            except ImageError as error:
                raise ValueError(f"its mask {source.mask.name}: {error.reason}") from None
            if mask_size != size:
                name = source.mask.name
                raise ValueError(f"its mask {name} has {mask_size} px, it must have {size} like the image")
    return size
