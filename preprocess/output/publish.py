"""Publish finished crops and rows so that a kill at any point leaves the old dataset or the new one.

Image files have a digest of their content in their name, so new files never overwrite those of old rows: images come
first, then one rename replaces metadata.jsonl, and only then are unused images deleted. A first dataset has no old rows
to protect: there metadata.jsonl comes first, so that datasets never finds images without captions.
"""

from pathlib import Path

from preprocess.jobs.state import jsonl, write_whole
from sdxl_lora.folders.mask_files import is_painted
from sdxl_lora.io.file_system import flush_to_disk, replace


def aside(output: Path, name: str) -> Path:
    """Return the path in .preprocess/taken_out that stores a file no row names but that holds a person's work."""
    return output / ".preprocess" / "taken_out" / name.replace("/", "~")


def publish(output: Path, staged: Path, rows: list[dict], old_files: set[str]) -> None:
    """Publish the rows and their images.

    Args:
        staged: folder of new image files, by the names that rows give them.
        rows: the rows of metadata.jsonl.
        old_files: files of earlier rows; those that no new row names are deleted, painted masks moved to `aside`.
    """
    images, metadata = output / "images", output / "metadata.jsonl"
    named = {name for row in rows for name in (row["file_name"], row.get("mask_file_name")) if name}
    if images.exists():
        for name in sorted(named):
            new = staged / Path(name).name
            if new.exists():
                replace(new, output / name)
            elif not (output / name).exists() and aside(output, name).exists():
                replace(aside(output, name), output / name)
        flush_to_disk(images)
        write_whole(metadata, jsonl(rows))
    else:
        for file in staged.iterdir():
            if f"images/{file.name}" not in named:
                file.unlink()
        write_whole(metadata, jsonl(rows))
        replace(staged, images)
    flush_to_disk(output)
    for name in sorted(old_files - named):
        if is_painted(name) and (output / name).exists():
            aside(output, name).parent.mkdir(exist_ok=True)
            replace(output / name, aside(output, name))
        elif Path(name).parent.as_posix() == "images":
            (output / name).unlink(missing_ok=True)
    for leftover in staged.glob("*"):
        leftover.unlink()
