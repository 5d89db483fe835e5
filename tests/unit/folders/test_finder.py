"""Every file in a folder of images is used or reported with the reason."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.folders.finder import find_images
from sdxl_lora.folders.folder_names import MOST_REPEATS, read_folder_name

WORDS = "a cat on a mat"


def folder_of(folder, *files, **texts):
    """A folder with tiny pictures, empty files of other endings, and files with texts (`__` in names is a dot)."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith((".png", ".jpg")):
            Image.new("RGB", (8, 8)).save(folder / name)
        else:
            (folder / name).write_bytes(b"")
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def names(found):
    return [source.name for source in found.sources]


def everything_named(found):
    """Names of sources, captions' files, and all that is said to be not used."""
    return {*names(found), *(s.caption_from for s in found.sources), *found.left_out, *found.other_files}


@pytest.mark.parametrize(
    "name, repeats, words",
    [
        ("10_sks cat", 10, "sks cat"),
        ("1_sks dog", 1, "sks dog"),
        ("999_x", 999, "x"),
        ("2023_Italy", 1, ""),
        ("1999_old", 1, ""),
        ("20240512_birthday", 1, ""),
        ("12052024_birthday", 1, ""),
        ("240512_birthday", 1, ""),
        ("202405_may", 1, ""),
        ("2024_05_12 Birthday", 1, ""),
        ("24_12_31 party", 1, ""),
        ("100_PANA", 1, ""),
        ("101_FUJI", 1, ""),
        ("102_0512", 1, ""),
        ("01_Italy", 1, ""),
        ("holiday", 1, ""),
    ],
)
def test_repeats_are_read_from_names_and_years_dates_cameras_and_numbering_are_not(name, repeats, words):
    asked = read_folder_name(name)
    assert (asked.repeats, asked.words, asked.problem) == (repeats, words, "")
    assert bool(asked.note) == name[0].isdigit()


@pytest.mark.parametrize("name", [f"{MOST_REPEATS + 1}_x", "4711_shoot", "99999999_x", "123456789012_x"])
def test_repeats_beyond_reason_are_refused_with_a_remedy(name, tmp_path):
    folder_of(tmp_path, f"{name}/a.png")
    with pytest.raises(DataError, match=rf"{name} asks for \d+ repeats.*call it '"):
        find_images(tmp_path)


def test_repeats_of_many_pictures_are_refused_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("sdxl_lora.folders.finder.MOST_ROWS", 100)
    folder_of(tmp_path, *(f"60_x/{number}.png" for number in range(2)))
    with pytest.raises(DataError, match=r"2 images become 120 by the repeats.*60_x"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.png",
        "#Recycle/old.png", "$RECYCLE.BIN/$R1.png", "RECYCLER/x.png", "@Recycle/x.png", ".Trash-1000/files/old.png",
        "lost+found/x.png", "System Volume Information/x.png", "__MACOSX/._a.png", ".hidden.png", "._a.png",
        "Temporary Items/x.png", "LOST.DIR/x.png",
    ],
)  # fmt: skip
def test_rubbish_is_named_and_not_used(place, tmp_path):
    found = find_images(folder_of(tmp_path, "a.png", f"{place}"))
    assert names(found) == ["a.png"]
    assert place.split("/")[0] in {name.rstrip("/") for name in (*found.left_out, *found.other_files)}


def test_a_training_below_its_pictures_adds_none(tmp_path):
    folder_of(tmp_path, "a.png", "run/events.jsonl", "run/status.json", "run/samples/grid.png", "run/x/y.png")
    found = find_images(tmp_path)
    assert names(found) == ["a.png"] and "training" in found.other_files["run/"]
    folder_of(tmp_path, "events.jsonl", "status.json", "samples/grid.png", "checkpoint-5/x.png")
    found = find_images(tmp_path)
    assert names(found) == ["a.png"] and {"samples/", "checkpoint-5/"} <= set(found.other_files)


@pytest.mark.parametrize(
    "file, content",
    [
        ("metadata.csv", f"file_name,text\na.png,{WORDS}\n"),
        ("metadata.tsv", f"file_name\ttext\na.png\t{WORDS}\n"),
        ("metadata.json", json.dumps([{"file_name": "a.png", "text": WORDS}])),
        ("metadata.jsonl", json.dumps({"file_name": "a.png", "caption": WORDS})),
        ("captions.csv", f"image_file,caption\na.png,{WORDS}\n"),
        ("captions.csv", f"filename;Prompt\r\nA.PNG;{WORDS}\r\n"),
        ("captions.jsonl", json.dumps({"file_name": "a.png", "text": WORDS})),
        ("a.json", json.dumps({"caption": WORDS})),
        ("a.png.json", json.dumps({"text": WORDS})),
        ("meta_cap.json", json.dumps({"a.png": {"caption": WORDS}})),
        ("meta_cap.json", json.dumps({"/home/me/train/a.png": {"caption": WORDS}})),
        ("meta_cap.json", json.dumps({"a": {"caption": "a cat", "tags": "on a mat"}})),
        ("captions.json", json.dumps({"a.png": WORDS})),
        ("a.tags", WORDS),
        ("a.caption", WORDS),
        ("a.TXT", WORDS),
        ("a.png.txt", WORDS),
        ("a.caption.txt", WORDS),
        ("A.txt", WORDS),
        ("a .txt", WORDS),
    ],
)
def test_captions_of_other_tools_are_read(file, content, tmp_path):
    folder_of(tmp_path, "a.png")
    (tmp_path / file).write_text(content, encoding="utf-8")
    found = find_images(tmp_path)
    assert found.sources[0].caption in (WORDS, "a cat, on a mat") and found.sources[0].caption_from == file


@pytest.mark.parametrize("image, caption", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_spelled_in_two_ways(image, caption, tmp_path):
    folder_of(tmp_path, unicodedata.normalize(image, "é.png"))
    (tmp_path / unicodedata.normalize(caption, "é.txt")).write_text(WORDS)
    assert find_images(tmp_path).sources[0].caption == WORDS


def test_an_exact_name_goes_before_one_that_is_alike(tmp_path):
    folder_of(tmp_path, "IMG_1.png", "img_1.png", IMG_1__txt="large", img_1__txt="small")
    if len(list(tmp_path.iterdir())) < 4:
        pytest.skip("a file system that takes both names for one")
    assert {s.name: s.caption for s in find_images(tmp_path).sources} == {"IMG_1.png": "large", "img_1.png": "small"}


@pytest.mark.parametrize(
    "file", ["gone.txt", "gone.caption", "gone.json", "metadata.xml", "metadata.json", "notes.csv", "list.jsonl",
             "a.b.c", "archive.zip", "film.mp4", "Thumbs.db", ".DS_Store", "stats.parquet", "noending", "table.json"]
)  # fmt: skip
def test_every_file_that_is_not_used_is_named(file, tmp_path):
    folder_of(tmp_path, "a.png", "a.txt")
    (tmp_path / file).write_text("{}" if file.endswith("json") else "x\n1\n" if file.endswith("csv") else "words")
    found = find_images(tmp_path)
    assert everything_named(found) == {"a.png", "a.txt", file} and found.other_files[file]


def test_pictures_by_other_endings_are_used_or_named(tmp_path):
    """Browsers and servers give .jfif, .jpg_large or no ending; a.jpg.bak is a copy of a picture."""
    names_of_image = ["a.jfif", "b.JPE", "c.jpg_large", "d", "e.jpg.bak", "f.ppm"]
    for name in names_of_image:
        Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    folder_of(tmp_path, "g.ppm", "h", a__txt="one", d__txt="four")
    found = find_images(tmp_path)
    assert {source.name: source.caption for source in found.sources} == {
        "a.jfif": "one", "b.JPE": None, "c.jpg_large": None, "d": "four",
    }  # fmt: skip
    assert all("rename it" in found.left_out[name] for name in ("e.jpg.bak", "f.ppm"))
    assert "unsupported format PPM" in found.left_out["g.ppm"] and found.other_files["h"] == "not an image"


def test_a_second_caption_of_a_picture_is_named(tmp_path):
    folder_of(tmp_path, "a.png", a__txt="one", a__caption="two", a__tags="three", a__json='{"text": "four"}')
    (tmp_path / "a.png.txt").write_text("five")
    (tmp_path / "captions.csv").write_text("file,text\na.png,six\n")
    found = find_images(tmp_path)
    said = " ".join(message for messages in found.warnings.values() for message in messages)
    assert found.sources[0].caption == "one"
    assert (
        all(name in said for name in ("a.caption", "a.tags", "a.json", "a.png.txt"))
        and "captions.csv" in found.warnings
    )


def test_a_caption_of_a_picture_that_is_left_out_says_so(tmp_path):
    found = find_images(folder_of(tmp_path, "b.png", "a.heic", a__txt="words"))
    assert found.other_files["a.txt"] == "a caption of a.heic, which is left out"


@pytest.mark.parametrize(
    "file", ["a-masklabel.png", "a-mask.png", "a_mask.png", "masks/a.png", "mask/a.png", "Masks/A.png"]
)
def test_masks_are_no_pictures_and_are_used_where_asked_for(file, tmp_path):
    folder_of(tmp_path, "a.png", file)
    plain, masked = find_images(tmp_path), find_images(tmp_path, masks=True)
    assert names(plain) == names(masked) == ["a.png"]
    assert "--masks folder" in plain.other_files[file] and plain.sources[0].mask is None
    assert masked.sources[0].mask == tmp_path / file and not masked.other_files


@pytest.mark.parametrize("file", ["masks/a_mask.png", "masks/a.png.png", "masks/a-masklabel.jpg", "masks/a.jpg"])
def test_masks_in_a_folder_may_be_called_otherwise(file, tmp_path):
    assert find_images(folder_of(tmp_path, "a.png", file), masks=True).sources[0].mask == tmp_path / file


def test_masks_of_subfolders_lie_below_them_or_in_a_tree_of_their_own(tmp_path):
    folder_of(tmp_path, "one/a.png", "one/masks/a.png", "two/b.png", "masks/two/b.png")
    assert [source.mask for source in find_images(tmp_path, masks=True).sources] == [
        tmp_path / "one/masks/a.png",
        tmp_path / "masks/two/b.png",
    ]


def test_a_mask_without_picture_a_picture_without_mask_and_files_among_masks_are_named(tmp_path):
    folder_of(tmp_path, "a.png", "b.png", "masks/a.png", "masks/a.xmp", "masks/a.txt", "masks/gone.png", "masks/a.jpg")
    found = find_images(tmp_path, masks=True)
    assert names(found) == ["a.png", "b.png"] and found.warnings == {"b.png": ["no mask: it counts everywhere"]}
    assert {"masks/a.xmp", "masks/a.txt", "masks/gone.png"} < set(found.other_files) and len(found.other_files) == 4


def test_pictures_to_go_by_are_not_trained(tmp_path):
    found = find_images(folder_of(tmp_path, "a.png", "a-condlabel.png"))
    assert names(found) == ["a.png"] and "a-condlabel.png" in found.other_files


def test_a_prepared_dataset_is_what_its_metadata_name(tmp_path):
    row = {"file_name": "images/a.png", "text": "a", "original_size": [8, 8], "mask_file_name": "images/a-m.png"}
    folder_of(tmp_path, "images/a.png", "images/b.png", "images/a-m.png", metadata__jsonl=json.dumps(row))
    found = find_images(tmp_path, masks=True)
    assert names(found) == ["images/a.png"] and found.left_out == {"images/b.png": "metadata.jsonl does not name it"}
    assert found.sources[0].mask == tmp_path / "images/a-m.png"


@pytest.mark.parametrize("content", ["", "{}\n", "{not json", '{"text": "a"}\n', '{"file_name": "a.png", "text": 7}\n',
                                     '{"file_name": "a.png", "text": "a \\ud83d"}\n',
                                     '{"file_name": "a.png", "mask_file_name": "../../x.png"}\n'])  # fmt: skip
def test_metadata_that_cannot_be_used_stop_the_run(content, tmp_path):
    folder_of(tmp_path, "a.png", metadata__jsonl=content)
    with pytest.raises(DataError, match=r"metadata\.jsonl"):
        find_images(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "a.txt", "a.json", "captions.csv"])
def test_a_pipe_in_place_of_captions_never_hangs(name, tmp_path):
    os.mkfifo(folder_of(tmp_path, "a.png") / name)
    try:
        assert name in find_images(tmp_path).other_files
    except DataError as error:
        assert name in str(error) and "pipe" in str(error)


def test_links_to_the_same_folder_are_named(tmp_path):
    folder_of(tmp_path, "b/a.png")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = find_images(tmp_path)
    assert names(found) == ["b/a.png"] and "already" in found.other_files["c/"]


def test_no_folder_is_said():
    with pytest.raises(ConfigError, match="is not a folder"):
        find_images(Path("nowhere at all"))


def test_samples_and_directories_in_place_of_captions_are_named(tmp_path):
    folder_of(tmp_path, "a.png", "a.txt/x", "old/step-000500-prompt-0-image-0.png")
    found = find_images(tmp_path)
    assert names(found) == ["a.png"] and found.warnings["a.txt/"] == ["a directory, not a file of captions"]
    assert found.other_files["old/step-000500-prompt-0-image-0.png"] == "a sample that a training drew"
