"""Export of a finished dataset as parquet shards and to the Hub."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from sdxl_lora.io.file_system import replace
from sdxl_lora.io.text_files import read_jsonl

Shard = list[dict]


def write_parquet(output: Path, max_bytes: int) -> int:
    """Write <output>/parquet, README.md and shard-*.parquet with the images inside, whole or not at all.

    Memory holds one shard at a time, whatever the number of images. The file names avoid the word "train": otherwise
    datasets would read only the shards of <output>.

    Args:
        max_bytes: of image files in a shard, unless one image alone has more.
    Returns:
        the number of shards.
    """
    from datasets import Dataset

    rows = read_jsonl(output / "metadata.jsonl")
    target, building, old = output / "parquet", output / ".preprocess" / "parquet", output / ".preprocess" / "old"
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    features = features_of(rows)
    shards = list(sharded(rows, output, max_bytes))
    for index, shard in enumerate(shards):
        examples = [with_images(row, output) for row in shard]
        dataset = Dataset.from_list(examples, features=features)
        dataset.to_parquet(building / f"shard-{index:05d}-of-{len(shards):05d}.parquet")
    shutil.copyfile(output / "README.md", building / "README.md")
    if target.exists():
        replace(target, old)
    replace(building, target)
    shutil.rmtree(old, ignore_errors=True)
    return len(shards)


def sharded(rows: list[dict], output: Path, max_bytes: int) -> Iterator[Shard]:
    shard: Shard = []
    size = 0
    for row in rows:
        row_bytes = sum((output / row[key]).stat().st_size for key in ("file_name", "mask_file_name") if row.get(key))
        if shard and size + row_bytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(row)
        size += row_bytes
    yield shard


def with_images(row: dict, output: Path) -> dict:
    """Return the row with files in place of their names, in the columns image and mask, as imagefolder has it."""
    example = {}
    for key, value in row.items():
        if key in ("file_name", "mask_file_name"):
            path = output / value if value else None
            image = {"bytes": path.read_bytes(), "path": path.name} if path else None  # no mask: the whole image counts
            example["image" if key == "file_name" else "mask"] = image
        else:
            example[key] = value
    return example


def features_of(rows: list[dict]):
    """Return column types inferred from all rows, so that shards agree where a column is empty in some of them."""
    from datasets import Dataset, Features, Image

    inferred = Dataset.from_list(rows).features
    images = {"file_name": "image", "mask_file_name": "mask"}
    return Features({images.get(key, key): Image() if key in images else inferred[key] for key in rows[0]})


def upload(folder: Path, repository: str, private: bool) -> str:
    """Upload the dataset's files and nothing else of the folder; return one line that says where it is."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    patterns = ["README.md", "metadata.jsonl", "images/*", "shard-*.parquet"]
    commit = api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder, allow_patterns=patterns)
    return f"uploaded to {commit.repo_url if hasattr(commit, 'repo_url') else repository}"
