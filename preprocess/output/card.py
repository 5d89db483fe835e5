"""README.md of a dataset: what it is, in words and in YAML that the Hub and the trainer read."""

import yaml


def dataset_card(rows: list[dict], trigger_word: str, name: str, caption_model: str) -> str:
    """
    Args:
        rows: the lines of metadata.jsonl.
    Returns:
        Markdown whose front matter has the key trigger_word.
    """
    front = {
        "trigger_word": trigger_word,
        "task_categories": ["text-to-image"],
        "tags": ["sdxl", "lora"],
        "pretty_name": name,
    }
    captions = "none" if caption_model == "none" else caption_model
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        f"# {name}",
        "",
        f"{len(rows)} captioned pictures for a LoRA of Stable Diffusion XL.",
        "",
        f"- Trigger word: {f'`{trigger_word}`' if trigger_word else 'none'}",
        f"- Captioner: {captions}",
        "- Columns: `file_name` (in `datasets`: `image`), `text`, `original_size` [height, width] before any resize,",
        "  `crop_top_left` [y, x] in pixels of the resized picture, `source`, `sha256` of the source file.",
        "",
        "Captions may be edited in `metadata.jsonl`: preprocess keeps what a person wrote there.",
        "",
    ]
    return "\n".join(lines)
