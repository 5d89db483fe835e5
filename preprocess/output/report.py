"""preprocess_report.json and the summary on the console: every file of the folder, and what became of it."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from preprocess.captions.token_count import CHUNK, Tokenize, caption_problems, least_tokens
from preprocess.output.rows import EDITED, Built, Row
from preprocess.sources.folders import kind_of
from sdxl_lora.config.names import printable
from sdxl_lora.folders.found import Found

SHOWN = 20  # names on the console; the report has all of them


def report_of(built: Built, settings: dict, tokenize: Tokenize = least_tokens, exact: bool = False) -> dict[str, Any]:
    """Return the run as JSON: counts, images left out and why, warnings, buckets, and each row as it will be trained.

    Args:
        settings: the command's, with trigger_word.
        tokenize: returns a text's tokens; CLIP's with `exact`, else a lower bound of them.
    """
    warnings = warnings_of(built)
    tokens = []
    for row in built.rows:
        trigger = "" if row.entry.source.is_class_image else settings["trigger_word"]
        counts = []
        messages = warnings.setdefault(row.entry.source.name, [])
        for text in row.columns.get("captions") or [row.columns["text"]]:
            count, problems = caption_problems(text, trigger, tokenize)
            counts.append(count)
            messages += [message for message in problems if message not in messages]
        tokens.append(max(counts))
    texts = Counter(row.columns["text"] for row in built.rows)
    return {
        "settings": settings,
        "counts": {
            "found": len(built.found.sources) + len(built.found.left_out),
            "used": len({row.columns["source"] for row in built.rows}),
            "left_out": len(built.left_out),
            "rows": len(built.rows),
            "new_crops": built.new_crops,
            "new_captions": built.new_captions,
            "empty_captions": sum(not row.entry.caption for row in built.rows),
            "text_from": dict(Counter(row.text_from for row in built.rows)),
        },
        "left_out": [{"source": name, "reason": reason} for name, reason in sorted(built.left_out.items())],
        "warnings": [{"source": name, "message": m} for name, messages in sorted(warnings.items()) for m in messages],
        "gone": built.gone,
        "not_pictures": sorted(built.found.other_files),
        "other_files": [{"source": name, "reason": reason} for name, reason in other_files(built.found)],
        "folders": [{"source": name, "message": note} for name, note in sorted(built.found.notes.items())],
        "buckets": bucket_table(built),
        "tokens": {"counted_by": "CLIP's tokenizer" if exact else "words and symbols, a lower bound", "limit": CHUNK},
        "trigger_word_tokens": tokenize(settings["trigger_word"]),
        "repeated_texts": [{"text": text, "rows": n} for text, n in texts.most_common(SHOWN) if n > 1],
        "rows": [row_facts(row, count) for row, count in zip(built.rows, tokens, strict=True)],
    }


def other_files(found: Found) -> list[tuple[str, str]]:
    """Return names and reasons of unused files that are no images; those that a person may have meant to use first."""
    plain = ("not a picture", "a hidden file", "a hidden folder")
    return sorted(found.other_files.items(), key=lambda item: (item[1] in plain, item[0]))


def warnings_of(built: Built) -> dict[str, list[str]]:
    """Return messages by source, each once."""
    warnings = {name: list(messages) for name, messages in built.found.warnings.items()}
    for row in built.rows:
        messages = warnings.setdefault(row.entry.source.name, [])
        messages += [message for message in row.entry.warnings if message not in messages]
    return {name: messages for name, messages in warnings.items() if messages}


def row_facts(row: Row, tokens: int) -> dict[str, Any]:
    crop = row.entry.prepared
    return row.columns | {
        "bucket": crop.bucket,
        "cut_off": crop.cut_off,
        "enlarged": crop.enlarged,
        "caption": row.entry.caption,
        "raw_caption": row.entry.raw_caption,
        "text_from": row.text_from,
        "tokens": tokens,
        "thumbnail": crop.key,
        **crop.measures,
    }


def bucket_table(built: Built) -> list[dict]:
    """Return a table by size: images, the mean and the largest share that was cut off."""
    by_size: dict[tuple[int, int], list[float]] = {}
    for row in built.rows:
        width, height = row.entry.prepared.bucket
        by_size.setdefault((width, height), []).append(row.entry.prepared.cut_off)
    return [
        {"size": list(size), "pictures": len(cuts), "mean_cut_off": sum(cuts) / len(cuts), "max_cut_off": max(cuts)}
        for size, cuts in sorted(by_size.items(), key=lambda item: item[0][0] / item[0][1])
    ]


def console_lines(report: dict, output: str, batch_size: int = 1) -> str:
    """Return the summary that the console shows at the end of a run."""
    counts = report["counts"]
    lines = ["", "bucket          images  cut off (mean, most)"]
    for bucket in report["buckets"]:
        width, height = bucket["size"]
        few = f"  fewer than a batch of {batch_size}" if bucket["pictures"] < batch_size else ""
        lines.append(
            f"{width:>5}x{height:<6} {bucket['pictures']:>9}  {bucket['mean_cut_off']:.0%}, "
            f"{bucket['max_cut_off']:.0%}{few}"
        )
    shared = Counter(entry["message"] for entry in report["warnings"])
    lines += listing(
        "warnings",
        [f"{count} images: {message}" for message, count in shared.items() if count > 3]
        + [f"{e['source']}: {e['message']}" for e in report["warnings"] if shared[e["message"]] <= 3],
    )
    lines += listing("folders", [f"{entry['source']}: {entry['message']}" for entry in report["folders"]])
    lines += listing("other files", [f"{entry['source']}: {entry['reason']}" for entry in report["other_files"]])
    lines += listing("left out", [f"{entry['source']}: {entry['reason']}" for entry in report["left_out"]])
    kinds = Counter(kind_of(entry["reason"]) for entry in report["left_out"])
    reasons = f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})" if kinds else ""
    lines += [
        "",
        f"{counts['used']} of {counts['found']} images used, {counts['left_out']} left out{reasons}; "
        f"{counts['new_crops']} crops and {counts['new_captions']} captions were new",
        "captions: " + ", ".join(f"{count} from {name}" for name, count in text_kinds(counts["text_from"]).items()),
        f"dataset: {output}",
    ]
    return "\n".join(lines)


def text_kinds(text_from: dict[str, int]) -> dict[str, int]:
    """Return counts by kind of caption; all caption files are one kind."""
    kinds: Counter = Counter()
    for name, count in text_from.items():
        kinds[name if name in ("captioner", "fallback", EDITED) else "caption files"] += count
    return dict(kinds)


def listing(title: str, items: list[str]) -> list[str]:
    more = [f"  ... and {len(items) - SHOWN} more in preprocess_report.json"] if len(items) > SHOWN else []
    return ["", f"{title}: {len(items)}", *(f"  {printable(item)}" for item in items[:SHOWN]), *more] if items else []


def to_json(report: dict) -> Iterator[str]:
    """Yield the pieces of the JSON file."""
    yield from json.JSONEncoder(ensure_ascii=False, indent=1).iterencode(report)
    yield "\n"
