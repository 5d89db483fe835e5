"""The trainer on folders as people have them: the pictures and captions that preprocess finds, nothing in silence."""

import json
import warnings
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from sdxl_lora.config.dataset_spec import DatasetEntry
from sdxl_lora.data.concat_dataset import ConcatDataset
from sdxl_lora.data.dataset import open_dataset, trigger_word_of
from sdxl_lora.data.image_dataset import ImageDataset, dataset_key
from sdxl_lora.errors import DataError
from tests.helpers.preparing import noise, preprocess, rows_of


def image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed=seed).save(path)


def opened(folder, **settings):
    """Pictures' names relative to the folder with their captions, and all that was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = ImageDataset(open_dataset(str(folder)), resolution=64, **settings)
    examples = {Path(e.name).relative_to(folder).as_posix(): e.caption for e in images.examples}
    return examples, " ".join(str(warning.message) for warning in caught)


def shard(path, **columns):
    png = path.with_name("one.png")
    image(png)
    row = {"image": {"bytes": png.read_bytes(), "path": "0.png"}, "text": "a cat", **columns}
    png.unlink()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)


def test_what_is_not_used_is_named(tmp_path):
    for name in ("a.png", ".hidden.png", "@eaDir/x.png", "a-masklabel.png"):
        image(tmp_path / name)
    for name in ("a.txt", "orphan.txt", "b.heic", "film.mp4"):
        (tmp_path / name).write_text("words")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    examples, said = opened(tmp_path)
    assert examples == {"a.png": "words"}
    for name in (".hidden.png", "@eaDir/", "a-masklabel.png", "orphan.txt", "b.heic", "film.mp4", "gone.png"):
        assert name in said


def test_preprocess_and_trainer_find_the_same_captions(tmp_path):
    raw = tmp_path / "raw"
    for seed, name in enumerate(["a.png", "B.png", "c/d.png", "2_sks cat/e.png", "f.png", "2023_x/g.png", "h.png"]):
        image(raw / name, seed)
    (raw / "a.caption").write_text("of a")
    (raw / "b.TXT").write_text("of b")
    (raw / "c" / "captions.csv").write_text("file,caption\nd.png,of d\n")
    (raw / "f.json").write_text('{"caption": "of f"}')
    (raw / "metadata.jsonl").write_text('{"file_name": "h.png", "text": "of h"}\n')
    assert preprocess(raw, tmp_path / "out") == 0
    prepared = {row["source"]: row["text"] for row in rows_of(tmp_path / "out")}
    examples, said = opened(raw)
    assert examples == prepared and prepared["2_sks cat/e.png"] == "sks cat" and prepared["B.png"] == "of b"
    assert "2 times per epoch" in said and "2023 is a year" in said


def test_repeats_of_a_folder_are_turns_in_the_epoch(tmp_path):
    image(tmp_path / "3_sks cat" / "a.png")
    image(tmp_path / "b.png", 1)
    images = ImageDataset(open_dataset(str(tmp_path)), resolution=64)
    assert [example.repeats for example in images.examples] == [3, 1]
    joined = ConcatDataset([images], [DatasetEntry("a", repeats=2)])
    assert [example.repeats for example in joined.examples] == [6, 2]


@pytest.mark.parametrize(
    "names",
    [
        ["a cat.png", "photo of a train.png", "photo of test tubes.png"],
        ["a.png", "test.png"],
        ["a.png", "val 1.png"],
        ["beach/a.png", "train station/a.png"],
        ["a [1].png", "b*.png", "c?.png", "[test]/d.png"],
    ],
)
def test_names_are_names_and_neither_splits_nor_patterns(names, tmp_path):
    folder = tmp_path / "data [train] *"
    for seed, name in enumerate(names):
        image(folder / name, seed)
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": n}) for n in names))
    assert opened(folder)[0] == {name: name for name in names}


def test_metadata_keep_their_order_their_lines_and_their_words_as_datasets_has_them(tmp_path):
    names = ["b.png", "sub/a.png", "a.png", "b.png"]
    for seed, name in enumerate(names[:3]):
        image(tmp_path / name, seed)
    lines = [{"file_name": name, "text": f" of\n {name}", "rating": number} for number, name in enumerate(names)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=tmp_path / ".hf")
    ours = open_dataset(str(tmp_path))
    assert ours["rating"] == theirs["rating"] == [0, 1, 2, 3] and ours["text"] == theirs["text"]
    keys = {dataset_key(ImageDataset(d, resolution=64, center_crop=False).examples) for d in (ours, theirs)}
    assert len(keys) == 1


def test_a_prepared_dataset_gives_the_examples_that_datasets_gives(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for seed, name in enumerate(["a.png", "2_x/b.png", "c.png"]):
        image(raw / name, seed)
    (raw / "masks").mkdir()
    half = Image.new("L", (96, 80))
    half.paste(255, (0, 0, 96, 40))
    half.save(raw / "masks" / "a.png")
    assert preprocess(raw, out, "--masks", "folder", "--fallback_caption", "a thing") == 0
    theirs = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=tmp_path / ".hf")
    for masked in (False, True):
        examples, said = opened(out, masked=masked)
        keys = [
            dataset_key(ImageDataset(dataset, resolution=64, masked=masked).examples)
            for dataset in (open_dataset(str(out)), theirs)
        ]
        assert keys[0] == keys[1] and len(examples) == 3
        assert masked is bool(not said)  # without masked_loss: that masks are not used, and nothing else
    rows = rows_of(out)
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["source"] != "c.png"))
    examples, said = opened(out)
    gone = next(row["file_name"] for row in rows if row["source"] == "c.png")
    assert len(examples) == 2 and gone in said


def test_metadata_that_name_what_is_not_there_stop_the_run(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "a"}\n{"file_name": "x.png", "text": "x"}\n'
    )
    with pytest.raises(DataError, match=r"metadata\.jsonl names 'x\.png'"):
        open_dataset(str(tmp_path))


def test_pictures_that_metadata_do_not_name_are_used_too(tmp_path):
    for seed, name in enumerate("abc"):
        image(tmp_path / f"{name}.png", seed)
    (tmp_path / "b.txt").write_text("a dog")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    examples, said = opened(tmp_path)
    assert examples == {"a.png": "a cat", "b.png": "a dog", "c.png": ""} and "c.png" in said


def test_captions_in_a_column_of_another_name_are_asked_for(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "blurb": "a cat"}\n')
    with pytest.raises(DataError, match=r"no column text; its columns are .*blurb"):
        opened(tmp_path)
    assert opened(tmp_path, caption_column="blurb")[0] == {"a.png": "a cat"}


@pytest.mark.parametrize("other", ["notes.txt", "LICENSE", "stats.json", "preview.png", "a.parquet.part", "x.tar"])
def test_files_beside_shards_are_named(other, tmp_path):
    shard(tmp_path / "a.parquet")
    (tmp_path / other).write_bytes(b"x")
    (tmp_path / "README.md").write_text("a card")
    with pytest.warns(UserWarning, match=other) as caught:
        assert len(open_dataset(str(tmp_path))) == 1
    assert not any("README" in str(warning.message) for warning in caught)


def test_tables_of_numbers_are_no_shards(tmp_path):
    image(tmp_path / "a.png")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "stats.parquet")
    examples, said = opened(tmp_path)
    assert list(examples) == ["a.png"] and "stats.parquet" in said


@pytest.mark.parametrize(
    "names, used",
    [
        (["holiday.parquet", "my_test_pictures.parquet"], 2),
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], 1),
        (["data/train/0.parquet", "data/validation/0.parquet", "data/test/0.parquet"], 1),
        (["train station.parquet", "beach [1].parquet"], 2),
    ],
)
def test_shards_of_tests_are_left_out_only_beside_those_of_training(names, used, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shard(tmp_path / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(open_dataset(str(tmp_path))) == used
    said = " ".join(str(warning.message) for warning in caught)
    assert all((name in said) == ("train" not in name and used < len(names)) for name in names)


STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"image": pyarrow.array([None], STRUCT)}, "row 0 of the dataset has no image"),
        ({"image": pyarrow.array([{"bytes": None, "path": None}], STRUCT)}, "row 0 of the dataset has no image"),
        ({"image": [1]}, "column image holds no images"),
        ({"image": pyarrow.array([{"bytes": b"x", "path": None}], STRUCT), "original_size": [[0, 0]],
          "crop_top_left": [[0, 0]]}, "sizes above 0"),
        ({"image": pyarrow.array([{"bytes": b"x", "path": "x.png"}], STRUCT), "original_size": [[64, 64]],
          "crop_top_left": [[0, 0]]}, r"x\.png: not an image"),
    ],
)  # fmt: skip
def test_odd_rows_of_parquet_are_named(columns, words, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({**columns, "text": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=words):
        ImageDataset(open_dataset(str(tmp_path)), resolution=64)


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file, or is damaged"):
        open_dataset(str(tmp_path))


def test_saved_splits_are_opened_at_train_and_others_named(tmp_path):
    image(tmp_path / "a.png")
    one = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "text": ["a"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "two")
    with pytest.warns(UserWarning, match="test: other splits"):
        assert len(open_dataset(str(tmp_path / "two"))) == 1
    datasets.DatasetDict({"pets": one}).save_to_disk(tmp_path / "one")
    assert len(open_dataset(str(tmp_path / "one"))) == 1
    datasets.DatasetDict({"cats": one, "dogs": one}).save_to_disk(tmp_path / "pets")
    with pytest.raises(DataError, match="has the splits cats, dogs but no train"):
        open_dataset(str(tmp_path / "pets"))


WORDS = ["no", "0123", "1e3", "12:30", "2024-01-01", "0x1F", "sks: cat", "yes", "off", "1_000", ".inf", "+1", "=", "<<"]


@pytest.mark.parametrize("word", WORDS)
def test_a_trigger_word_is_the_text_that_stands_there(word, tmp_path):
    quoted = f'"{word}"' if ":" in word and " " in word else word
    (tmp_path / "README.md").write_text(f"---\ntrigger_word: {quoted}\n---\n# cat\n")
    assert trigger_word_of(str(tmp_path)) == word


@pytest.mark.parametrize("head", ["", "---\n---\n", "---\ntrigger_word:\n---\n", "---\ntrigger_word: null\n---\n",
                                  "---\ntrigger_word: ~\n---\n", "---\ntrigger_word: '  '\n---\n",
                                  "---\n- a\n---\n", "# notes\ntrigger_word: x\n"])  # fmt: skip
def test_a_card_without_a_trigger_word_has_none(head, tmp_path):
    (tmp_path / "README.md").write_text(head)
    assert trigger_word_of(str(tmp_path)) == ""


@pytest.mark.parametrize("content", [b"---\nx: caf\xe9\n---\n", b"---\na: [1\n---\n"])
def test_notes_that_are_no_card_are_named(content, tmp_path):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.warns(UserWarning, match=r"README\.md is not read for a trigger word"):
        assert trigger_word_of(str(tmp_path)) == ""


def test_a_trigger_word_that_is_a_list_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("---\ntrigger_word: [a, b]\n---\n")
    with pytest.raises(DataError, match="must be a single string, it is"):
        trigger_word_of(str(tmp_path))


def test_folders_called_like_splits_are_used_with_a_word(tmp_path):
    image(tmp_path / "train" / "a.png")
    image(tmp_path / "test" / "b.png", 1)
    examples, said = opened(tmp_path)
    assert list(examples) == ["test/b.png", "train/a.png"] and "test: used too" in said


def test_tars_without_streaming_are_told_how_they_are_read(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match=r"a\.tar: not used, an archive"),
        pytest.raises(DataError, match="--dataset_streaming"),
    ):
        open_dataset(str(tmp_path))
