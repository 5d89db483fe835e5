"""Any amount: worker processes, several ranks, parquet shards, the Hub, and a plan before anything is done."""

import json
import os
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from preprocess.images import workers
from tests.helpers.dying_worker import prepare_and_die_at_3
from tests.helpers.launch import free_port
from tests.helpers.preparing import content, noise, opened, preprocess, report_of, rows_of, snapshot


def test_worker_processes_give_the_same_dataset(nine_images, tmp_path):
    assert preprocess(nine_images, tmp_path / "one", "--num_workers", 0) == 0
    assert preprocess(nine_images, tmp_path / "two", "--num_workers", 2) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_killed_worker_ends_the_run_by_name_and_loses_nothing(nine_images, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(workers, "prepare_under_name", prepare_and_die_at_3)
        assert preprocess(nine_images, tmp_path / "out", "--num_workers", 2) == 3
    error = capsys.readouterr().err
    assert "a worker process was killed" in error and "3.png" in error and "--num_workers 1" in error
    assert not (tmp_path / "out" / "metadata.jsonl").exists()
    assert preprocess(nine_images, tmp_path / "out") == 0 and len(rows_of(tmp_path / "out")) == 8


@pytest.mark.slow
def test_two_processes_of_accelerate_give_the_same_dataset(nine_images, tmp_path, tiny_florence2):
    flags = ["--input_dir", nine_images, "--resolution", "64", "--bucket_step", "16", "--trigger_word", "sks"]
    flags += ["--caption_model", tiny_florence2, "--caption_max_new_tokens", "8", "--num_workers", "0"]
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--main_process_port", free_port(), "--module", "preprocess"]
    command = [sys.executable, "-m", *launch, *flags, "--output_dir", tmp_path / "two"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "5/5 [" in result.stderr and "4/4 [" in result.stderr, "each of the two did its share"
    assert preprocess(nine_images, tmp_path / "one", *flags[6:]) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert report_of(tmp_path / "two")["counts"]["new_captions"] == 7


def test_a_dry_run_says_what_would_be_and_writes_nothing(nine_images, tmp_path, capsys):
    (nine_images / "note.png").write_text("no image")
    noise(20, 20).save(nine_images / "small.png")
    before = snapshot(tmp_path)
    assert preprocess(nine_images, tmp_path / "out", "--dry_run") == 0
    printed = capsys.readouterr().out
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()
    assert "11 images, 3 would be left out" in printed and "captions: 1 from files, 10 from the fallback" in printed
    assert preprocess(nine_images, tmp_path / "out") == 0
    for bucket in report_of(tmp_path / "out")["buckets"]:
        assert "{}x{}: ".format(*bucket["size"]) in printed


def test_parquet_shards_hold_the_same_dataset_within_their_size(nine_images, tmp_path):
    out = tmp_path / "out"
    values = np.random.default_rng(0).integers(0, 255, (30, 128, 128, 3), np.uint8)  # 49 kB each, incompressible
    for number, pixels in enumerate(values):
        Image.fromarray(pixels).save(nine_images / f"large{number}.png")
    assert preprocess(nine_images, out, "--format", "parquet", "--max_shard_mb", 1, resolution=128) == 0
    shards = sorted((out / "parquet").glob("*.parquet"))
    assert len(shards) > 1 and all(shard.stat().st_size < 1.2e6 for shard in shards)
    folder, parquet = (
        opened(out, tmp_path),
        load_dataset(str(out / "parquet"), split="train", cache_dir=tmp_path / "hf"),
    )
    assert parquet.column_names == folder.column_names and len(parquet) == len(folder)
    for a, b in zip(folder, parquet, strict=True):
        assert np.array_equal(a.pop("image"), b.pop("image")) and a == b
    assert preprocess(nine_images, out, "--format", "parquet", resolution=128) == 0
    assert [shard.name for shard in (out / "parquet").glob("s*")] == ["shard-00000-of-00001.parquet"]


def test_shards_agree_on_columns_that_are_empty_in_some(nine_images, tmp_path):
    out = tmp_path / "out"
    assert preprocess(nine_images, out, "--masks", "alpha", "--class_images", nine_images.parent / "raw2") == 2
    assert preprocess(nine_images, out, "--masks", "alpha") == 0
    rows = [row | {"rating": number if number > 6 else None} for number, row in enumerate(rows_of(out))]
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = np.random.default_rng(0).integers(0, 255, (30, 128, 128, 3), np.uint8)
    for number, pixels in enumerate(values):
        Image.fromarray(pixels).save(nine_images / f"large{number}.png")
    flags = ["--masks", "alpha", "--format", "parquet", "--max_shard_mb", 1, "--enlarge_small"]
    assert preprocess(nine_images, out, *flags, resolution=128) == 0
    parquet = load_dataset(str(out / "parquet"), split="train", cache_dir=tmp_path / "hf")
    assert len(list((out / "parquet").glob("*.parquet"))) > 1 and 7 in parquet["rating"]
    assert parquet[0]["mask"].size == parquet[0]["image"].size


def test_the_hub_gets_the_dataset_and_its_card_and_nothing_else(nine_images, tmp_path, monkeypatch, capsys):
    uploads = []

    def upload_folder(self, *, folder_path, allow_patterns, **options):
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        chosen = sorted(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns))
        uploads.append((chosen, options))

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, *a, **options: uploads.append(options))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert preprocess(nine_images, tmp_path / "out", "--push_to_hub", "--hub_dataset_id", "me/cat") == 0
    created, (files, options) = uploads
    assert created["private"] and created["repo_type"] == options["repo_type"] == "dataset"
    assert files == sorted(["README.md", "metadata.jsonl", *(row["file_name"] for row in rows_of(tmp_path / "out"))])
    assert not any(b"hf_secret" in data for data, _ in snapshot(tmp_path / "out").values())
    assert "uploaded to me/cat" in capsys.readouterr().out


def test_without_a_login_nothing_starts(nine_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert preprocess(nine_images, tmp_path / "out", "--push_to_hub", "--hub_dataset_id", "me/cat") == 2
    assert "hf auth login" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert preprocess(nine_images, tmp_path / "out", "--push_to_hub", "--hub_dataset_id", "a/b/c") == 2
    assert json.dumps(capsys.readouterr().err)
