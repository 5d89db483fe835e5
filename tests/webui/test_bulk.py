"""Many captions of a dataset changed at once, and an image taken out: looked at first, done whole, undone exactly."""

import json
import shutil

import pytest
from filelock import FileLock
from PIL import Image

from preprocess.__main__ import main as preprocess
from preprocess.editing import bulk, history
from preprocess.editing import prepared as datasets
from preprocess.editing.search import Search, View, reading_of
from preprocess.editing.tags import Edit, Reading, tag_counts
from sdxl_lora.errors import ConfigError
from webui.widgets import templates

TEXTS = ["sks, 1girl, smile", "sks, 1girl, solo", "sks, a photo of a <dog>", "sks, Smile, grin"]
PLAIN, ADD = Reading(), Edit("add", "outdoors")


def prepare(raw, output) -> None:
    flags = ["--resolution", "64", "--num_workers", "0", "--caption_model", "none", "--trigger_word", "sks"]
    assert preprocess(["--input_dir", str(raw), "--output_dir", str(output), *flags]) == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    raw, output = tmp_path_factory.mktemp("raw") / "raw", tmp_path_factory.mktemp("data") / "cat"
    raw.mkdir()
    for number, text in enumerate(TEXTS):
        Image.radial_gradient("L").rotate(40 * number).resize((96, 96 + 8 * number)).convert("RGB").save(
            raw / f"p{number}.png"
        )
        (raw / f"p{number}.txt").write_text(text)
    prepare(raw, output)
    return raw, output


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared[1], tmp_path / "cat")
    return tmp_path / "cat"


def texts(folder) -> dict[str, str]:
    return {row["source"]: row["text"] for row in datasets.rows_of(folder)}


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "images").iterdir()}


def change(folder, edit: Edit, search: Search | None = None) -> int:
    plan = bulk.planned(folder, edit, search, PLAIN)
    changed = bulk.change_all(folder, edit, search, PLAIN, plan.digest)
    assert changed == len(plan.changes)
    assert {change.after for change in plan.changes} <= set(texts(folder).values())
    return changed


def test_a_change_over_what_is_searched_for_is_what_was_shown_and_undo_gives_every_byte_back(folder):
    before = (folder / "metadata.jsonl").read_bytes()
    assert change(folder, ADD, Search("[smile]")) == 2
    outdoors = {source for source, text in texts(folder).items() if text.endswith(", outdoors")}
    assert outdoors == {"p0.png", "p3.png"}
    assert change(folder, Edit("replace", "1girl", "woman")) == 2 and change(folder, ADD) == 2
    assert [history.undo(folder) for _ in range(3)] == [(2, 0)] * 3
    assert (folder / "metadata.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="nothing to undo"):
        history.undo(folder)


def test_undo_leaves_alone_what_a_hand_has_changed_since(folder):
    assert change(folder, ADD) == 4
    (image,) = (image for image in datasets.read_dataset(folder).images if image.source == "p1.png")
    datasets.save_text(folder, image.file_name, image.text, "sks, by hand")
    assert history.undo(folder) == (3, 1)
    assert texts(folder) == {"p0.png": TEXTS[0], "p1.png": "sks, by hand", "p2.png": TEXTS[2], "p3.png": TEXTS[3]}


def test_undo_goes_back_over_captions_with_signs_that_also_end_lines(folder):
    rows = [{**row, "text": row["text"].replace("sks,", "sks,\u2028\x85")} for row in datasets.rows_of(folder)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    before = (folder / "metadata.jsonl").read_bytes()
    for tag in ("outdoors", "indoors"):
        change(folder, Edit("add", tag))
    assert [history.undo(folder), history.undo(folder)] == [(4, 0), (4, 0)]
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_a_row_without_a_caption_is_not_changed_by_what_changes_nothing_in_it(folder):
    rows = datasets.rows_of(folder)
    del rows[0]["text"]
    rows[1]["text"] = None
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    plan = bulk.planned(folder, Edit("remove", "no such tag"), None, PLAIN)
    assert (plan.chosen, plan.changes) == (4, [])


def test_what_would_do_something_else_by_now_is_not_done(folder, monkeypatch):
    monkeypatch.setattr(datasets, "SECONDS_TO_WAIT", 0.1)
    plan = bulk.planned(folder, ADD, Search("[smile]"), PLAIN)
    (image,) = (image for image in datasets.read_dataset(folder).images if image.source == "p1.png")
    datasets.save_text(folder, image.file_name, image.text, "sks, smile")
    now = (folder / "metadata.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="have changed since"):
        bulk.change_all(folder, ADD, Search("[smile]"), PLAIN, plan.digest)
    with FileLock(folder / ".preprocess" / "lock"), pytest.raises(ConfigError, match="is being prepared"):
        bulk.change_all(folder, ADD, None, PLAIN, bulk.planned(folder, ADD, None, PLAIN).digest)
    assert (folder / "metadata.jsonl").read_bytes() == now and history.kept_changes(folder) == []


def test_of_several_captions_of_an_image_all_are_changed_and_the_first_is_added_to(folder):
    rows = datasets.rows_of(folder)
    rows[0]["captions"] = [rows[0]["text"], "a girl, smile, in prose"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert change_rows(folder, Edit("remove", "smile")) == ["sks, 1girl", "a girl, in prose"]
    assert change_rows(folder, ADD) == ["sks, 1girl, outdoors", "a girl, in prose"]


def change_rows(folder, edit: Edit) -> list[str]:
    bulk.change_all(folder, edit, None, PLAIN, bulk.planned(folder, edit, None, PLAIN).digest)
    row = datasets.rows_of(folder)[0]
    assert row["text"] == row["captions"][0]
    return row["captions"]


def test_an_image_that_is_taken_out_is_laid_aside_comes_back_whole_and_stays_out_when_prepared_again(folder, prepared):
    before = ((folder / "metadata.jsonl").read_bytes(), files(folder))
    image = datasets.read_dataset(folder).images[1]
    with pytest.raises(ConfigError, match="was changed or removed"):
        bulk.take_out(folder, (image.file_name, 0), "another caption")
    bulk.take_out(folder, (image.file_name, 0), image.text)
    assert image.source not in texts(folder) and image.file_name not in files(folder) and len(texts(folder)) == 3
    assert history.undo(folder) == (1, 0)
    assert ((folder / "metadata.jsonl").read_bytes(), files(folder)) == before
    bulk.take_out(folder, (image.file_name, 0), image.text)
    prepare(prepared[0], folder)
    assert image.source not in texts(folder) and len(texts(folder)) == 3
    history.undo(folder)
    assert texts(folder)[image.source] == image.text and files(folder) == before[1]


def test_of_several_rows_of_a_file_the_one_that_was_seen_is_taken_out(folder):
    row = datasets.rows_of(folder)[0]
    rows = [{**row, "text": text} for text in ("one", "two", "two", "three")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    bulk.take_out(folder, (row["file_name"], 0), "one")  # by another tab: all others move up
    bulk.take_out(folder, (row["file_name"], 3), "three")
    assert [one["text"] for one in datasets.rows_of(folder)] == ["two", "two"]
    with pytest.raises(ConfigError, match="was changed or removed"):
        bulk.take_out(folder, (row["file_name"], 0), "one")
    bulk.take_out(folder, (row["file_name"], 1), "two")
    assert history.undo(folder) == history.undo(folder) == history.undo(folder) == (1, 0)
    assert [one["text"] for one in datasets.rows_of(folder)] == ["one", "two", "two", "three"]


def test_a_row_that_names_a_file_elsewhere_takes_nothing_from_there(folder, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    rows = [*datasets.rows_of(folder), {"file_name": "../mine.png", "text": "x"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bulk.take_out(folder, ("../mine.png", 0), "x")
    assert (tmp_path / "mine.png").read_bytes() == b"mine" and history.undo(folder) == (1, 0)
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_words_tags_and_their_absence_find_images(folder):
    dataset = datasets.read_dataset(folder)

    def found(words: str, shown: str = "all") -> list[str]:
        return sorted(image.source[1] for image in Search(words, shown).images(dataset, PLAIN))

    assert found("") == list("0123") and found("smil") == ["0", "3"] and found("[smil]") == []
    assert found("[Smile]") == ["0", "3"] and found("[smile], -grin") == ["0"] and found("-[1girl]") == ["2", "3"]
    assert found("p2.png") == ["2"] and found("", "without a caption") == []
    assert found("", "to look at") == sorted(image.source[1] for image in dataset.images if image.problems)


def test_a_view_is_read_back_as_it_was_told_and_nonsense_is_the_first_page():
    view = View("cat/dataset", 3, Search("[a], -b", "to look at"), reading_of(";", 2.0, "|||"))
    assert View.of(json.loads(json.dumps(view.facts()))) == view
    for facts in ({}, {"page": "x", "search": 3}, {"reading": [None, "x", 7]}):
        assert View.of(facts) == View(None)
    assert reading_of("", -1, "") == PLAIN


def test_what_is_shown_of_tags_and_changes_is_text_and_says_what_is_kept(folder):
    dataset = datasets.read_dataset(folder)
    plan = bulk.planned(folder, Edit("replace text", "<dog>", "<i>"), None, PLAIN)
    html = templates.datasets.change(plan)
    assert "1 of 4 captions" in html and "<i>" not in html and "<del>&lt;dog&gt;</del><ins>&lt;i&gt;</ins>" in html
    assert "None of the 4" in templates.datasets.change(bulk.planned(folder, Edit("remove", "none"), None, PLAIN))
    reading = Reading(",", 1)
    html = templates.datasets.tags(tag_counts(TEXTS, reading), reading, dataset.trigger_word)
    assert "start of each caption: 1." in html and "trigger word, kept" in html and "<dog>" not in html
