"""Dataset card: a README.md with YAML front matter that the Hub and the trainer read."""

from collections.abc import Sequence

import yaml


def models_in(settings: object) -> list[str]:
    """Return the captioners in a report's settings, as any version wrote them; empty for none."""
    named = settings.get("caption_model") if isinstance(settings, dict) else None
    models = named if isinstance(named, list | tuple) else [named or "none"]
    return [str(model) for model in models if model != "none"]


def dataset_card(rows: list[dict], trigger_word: str, name: str, caption_models: Sequence[str]) -> str:
    """Return the card of a dataset.

    Args:
        rows: the rows of metadata.jsonl.
        caption_models: the captioners; empty for none.
    Returns:
        Markdown whose front matter has the key trigger_word.
    """
    front = {
        "trigger_word": trigger_word,
        "task_categories": ["text-to-image"],
        "tags": ["sdxl", "lora"],
        "pretty_name": name,
    }
    several = ", and `captions`, one of which is taken at each use" if any(row.get("captions") for row in rows) else ""
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        f"# {name}",
        "",
        f"{len(rows)} captioned images for a LoRA of Stable Diffusion XL.",
        "",
        f"- Trigger word: {f'`{trigger_word}`' if trigger_word else 'none'}",
        f"- Captioner: {' and '.join(caption_models) or 'none'}",
        "- Columns: `file_name` (in `datasets`: `image`), `text`, `original_size` [height, width] before any resize,",
        f"  `crop_top_left` [y, x] in pixels of the resized image, `source`, `sha256` of the source file{several}.",
        "",
        "Captions may be edited in `metadata.jsonl`: preprocess keeps what a person wrote there.",
        "",
    ]
    return "\n".join(lines)
