"""What a run would do, from the headers of the files: decodes no picture and writes nothing."""

from collections import Counter

from PIL import Image

from preprocess.captions.caption_all import CaptionPlan
from preprocess.images.crop import Sizing
from preprocess.output.report import listing, other_files
from sdxl_lora.data.images import FORMATS, upright_size
from sdxl_lora.folders.found import Found


def plan_lines(found: Found, sizing: Sizing, plan: CaptionPlan) -> str:
    """
    Raises:
        ConfigError: the captioner that is needed cannot be loaded.
    """
    sizes: Counter = Counter()
    left_out = dict(found.left_out)
    for source in found.sources:
        try:
            with Image.open(source.path, formats=FORMATS) as image:
                sizes[sizing.bucket_of(upright_size(image))] += 1
        except OSError as error:  # Pillow's own error for what is no image is one
            left_out[source.name] = f"cannot be opened ({type(error).__name__})"
        except (ValueError, Image.DecompressionBombError, SyntaxError) as error:
            left_out[source.name] = str(error)
    rows = sum(source.repeats for source in found.sources)
    with_repeats = f", {rows} with repeats" if rows > len(found.sources) else ""
    without = sum(source.caption is None for source in found.sources)
    if plan.load and without:
        plan.check()
    who = "the captioner" if plan.load else "the fallback caption"
    return "\n".join(
        [
            f"{len(found.sources)} pictures{with_repeats}, {len(left_out)} would be left out:",
            *(f"  {name}: {reason}" for name, reason in sorted(left_out.items())),
            *listing("folders", [f"{name}: {note}" for name, note in sorted(found.notes.items())]),
            *listing("other files", [f"{name}: {reason}" for name, reason in other_files(found)]),
            *listing("warnings", [f"{name}: {text}" for name, texts in found.warnings.items() for text in texts]),
            "sizes:",
            *(f"  {w}x{h}: {count}" for (w, h), count in sorted(sizes.items())),
            f"captions: {len(found.sources) - without} from files, {without} from {who}",
            "nothing was written: a dry run reads headers only, and damaged pictures show when they are decoded",
        ]
    )
