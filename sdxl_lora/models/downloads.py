"""Which weights of a diffusers base are taken where no variant is named, and what of them is downloaded.

Asks for lists of files, and reads none.
"""

from pathlib import Path

from sdxl_lora.io.hub_files import Download, hub_files, is_cached, missing, weights_among
from sdxl_lora.models.base_source import MODELS, Base, source_of


def settled_variant(base: Base) -> tuple[str | None, str]:
    """Return the variant to take of a diffusers base, and why: fp16 where every part has it, in half the size.

    What is on this disk already is not downloaded again in another size.
    """
    folder = Path(base.path)
    if folder.is_dir():
        names = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors*")}
        places = [names]
    else:
        listed = hub_files(base.path, base.revision)
        places = [{name for name in listed if is_cached(base.path, base.revision, name)}, set(listed)]
    for names in places:
        for variant, why in (("fp16", "half the size"), (None, "there is no fp16")):
            if all(weights_among(names, part, variant or "") for part in own_parts(base)):
                return variant, why if names is places[-1] else "which is on this disk"
    return None, "no fp16 is known of"


def own_parts(base: Base) -> list[str]:
    """The parts whose weights the base's own folder or repository gives."""
    return [part for part in MODELS if part != "vae" or base.vae_path is None]


def downloads_of(base: Base) -> list[Download]:
    """The weights of a base, and of a VAE of its own, that the Hub has and this disk has not."""
    found: list[Download] = []
    for source in dict.fromkeys(source_of(base, part)[0] for part in MODELS):
        if Path(source).exists():
            continue
        revision = base.revision if source == base.path else None
        listed = hub_files(source, revision)
        for part in MODELS:
            of_part, folder = source_of(base, part)
            if of_part == source:
                tried = (weights_among(listed, folder, variant) for variant in base.variants(part))
                found += missing(source, revision, next(filter(None, tried), []), listed)
    return found
