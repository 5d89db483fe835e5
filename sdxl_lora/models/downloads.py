"""Choice of a diffusers base's weight variant, and the files to download for it.

Requests lists of files and reads no file.
"""

from pathlib import Path

from sdxl_lora.io.hub_files import Download, hub_files, is_cached, missing, weights_among
from sdxl_lora.models.base_source import MODELS, Base, source_of


def settled_variant(base: Base) -> tuple[str | None, str]:
    """Return the variant of a diffusers base to use, and the reason: fp16, half the size, if every part has it.

    Weights already on this disk are not downloaded again in another variant.
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
    """Return the parts whose weights come from the base's own folder or repository."""
    return [part for part in MODELS if part != "vae" or base.vae_path is None]


def downloads_of(base: Base) -> list[Download]:
    """Return the weights of a base and of a separate VAE that are on the Hub but not on this disk."""
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
