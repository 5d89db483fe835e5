"""The preparing command in this process, and its results."""

import json

import numpy as np
from datasets import load_dataset
from PIL import Image

from preprocess.__main__ import main


def preprocess(raw, out, *flags, resolution=64):
    """Run the command in this process, at a tiny size and without a captioner unless flags say otherwise."""
    small = ["--resolution", str(resolution), "--bucket_step", "16", "--num_workers", "0", "--caption_model", "none"]
    return main(["--input_dir", str(raw), "--output_dir", str(out), *small, *map(str, flags)])


def rows_of(out):
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def report_of(out):
    return json.loads((out / "preprocess_report.json").read_text(encoding="utf-8"))


def opened(out, tmp_path):
    return load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "hf-cache"))


def noise(width=96, height=80, seed=0):
    values = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content(out):
    """Return the contents of a dataset that must not depend on the number of its workers."""
    return (
        rows_of(out),
        {name: data for name, (data, _) in snapshot(out / "images").items()},
        report_of(out)["left_out"],
    )


def edit(out, source, text):
    """Change a text as a person does in an editor."""
    rows = rows_of(out)
    for row in rows:
        if row["source"] == source:
            row["text"] = text
    write_rows(out, rows)


def write_rows(out, rows):
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts_of(out):
    return {row["source"]: row["text"] for row in rows_of(out)}
