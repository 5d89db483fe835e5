"""The dataset as the page shows and mends it: what a person reads, what stands in the files afterwards."""

import contextlib
import json
import shutil
import threading
import types

import pytest
from filelock import FileLock

from preprocess.__main__ import main as preprocess
from preprocess.captions.caption_text import NO_CAPTION
from preprocess.editing import prepared as datasets
from sdxl_lora.errors import ConfigError, DataError
from tests.helpers.french import french
from webui.pages.captions import Captions
from webui.runs.context import Context
from webui.runs.drawings import MOST_IMAGES, drawing_request
from webui.runs.jobs import Jobs
from webui.runs.recaption import recaption
from webui.settings.workspace import Workspace
from webui.widgets.dataset_html import card_html


def prepare(raw, output, *flags: str) -> int:
    return preprocess(
        ["--input_dir", str(raw), "--output_dir", str(output), "--resolution", "64", "--num_workers", "0",
         "--trigger_word", "sks", "--caption_model", "none", *flags]
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(captioned_photographs, tmp_path_factory):
    raw, output = tmp_path_factory.mktemp("raw") / "raw", tmp_path_factory.mktemp("data") / "cat"
    shutil.copytree(captioned_photographs, raw)
    shutil.copy(raw / "coffee.png", raw / "coffee-again.png")
    (raw / "coffee-again.txt").write_text("the same cup")
    (raw / "empty.png").write_bytes(b"")
    assert prepare(raw, output) == 0
    return raw, output


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared[1], tmp_path / "cat")
    return tmp_path / "cat"


def texts(folder) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["source"]: row["text"] for row in rows}


def test_problems_come_first_and_what_was_left_out_has_its_reason(folder):
    dataset = datasets.read_dataset(folder)
    troubled = [bool(image.problems) for image in dataset.images]
    assert troubled == sorted(troubled, reverse=True) and any(troubled) and not all(troubled)
    assert any("duplicate" in problem for problem in dataset.images[0].problems)
    assert dataset.left_out == [("empty.png", "empty file (0 bytes)")] and dataset.trigger_word == "sks"
    card = card_html(folder, dataset.images[-1])
    assert "gradio_api/file=" in card and "tokens" in card and "left:" in card
    assert "<li>double de coffee" in french(card_html, folder, dataset.images[0])


def test_a_concept_that_was_typed_as_every_caption_is_no_problem_and_nor_is_a_caption_by_hand(folder):
    report = json.loads((folder / "preprocess_report.json").read_text())
    report["warnings"] = [{"source": "chelsea.jpg", "message": NO_CAPTION}]

    def problems(**settings) -> list[str]:
        changed = {**report, "settings": {**report["settings"], **settings}}
        (folder / "preprocess_report.json").write_text(json.dumps(changed))
        (image,) = (image for image in datasets.read_dataset(folder).images if image.source == "chelsea.jpg")
        return [*image.problems, image.file_name, image.text]

    assert problems(fallback_caption="")[0] == NO_CAPTION
    assert problems(fallback_caption="a dog", caption_model="florence")[0] == NO_CAPTION
    (file_name, text) = problems(fallback_caption="a dog", caption_model="none")
    problems(fallback_caption="")
    assert datasets.save_text(folder, file_name, text, "sks, a tabby by hand")
    assert problems(fallback_caption="") == [file_name, "sks, a tabby by hand"]


def test_an_edited_caption_is_kept_by_the_next_preparation(folder, prepared):
    image = next(p for p in datasets.read_dataset(folder).images if p.source == "chelsea.jpg")
    assert datasets.save_text(folder, image.file_name, image.text, " sks,  a cat\nlooking ")
    assert texts(folder)["chelsea.jpg"] == "sks, a cat looking"
    assert not datasets.save_text(folder, image.file_name, "sks, a cat looking", "sks, a cat looking")
    assert prepare(prepared[0], folder) == 0
    assert texts(folder)["chelsea.jpg"] == "sks, a cat looking"
    assert {**texts(folder), "chelsea.jpg": ""} == {**texts(prepared[1]), "chelsea.jpg": ""}


def test_an_edit_never_overwrites_what_someone_else_wrote_meanwhile(folder):
    first, second, *_ = datasets.read_dataset(folder).images
    assert datasets.save_text(folder, first.file_name, first.text, "sks, mine")
    with pytest.raises(ConfigError, match="was changed elsewhere"):
        datasets.save_text(folder, first.file_name, first.text, "sks, theirs")
    with pytest.raises(ConfigError, match="no longer in the dataset"):
        datasets.save_text(folder, "images/none.png", "", "x")
    lock = FileLock(folder / ".preprocess" / "lock")
    with lock, pytest.raises(ConfigError, match="is being prepared"):
        datasets.save_text(folder, second.file_name, second.text, "sks, x")
    assert texts(folder)[first.source] == "sks, mine" and texts(folder)[second.source] == second.text


def test_a_changed_caption_is_judged_anew(folder):
    image = datasets.read_dataset(folder).images[-1]
    assert image.problems == [] and not image.at_least
    datasets.save_text(folder, image.file_name, image.text, "word " * 90)
    again = next(p for p in datasets.read_dataset(folder).images if p.file_name == image.file_name)
    assert again.at_least and again.tokens == 90
    assert any("more than the 75" in problem for problem in again.problems)
    assert any("trigger word sks is missing" in problem for problem in again.problems)


def test_the_trigger_word_goes_where_it_is_missing_once_and_into_the_card(folder):
    assert datasets.add_trigger_word(folder, "sks") == 0
    assert datasets.add_trigger_word(folder, " ohwx ") == 5 and datasets.add_trigger_word(folder, "ohwx") == 0
    assert all(text.startswith("ohwx, sks, ") for text in texts(folder).values())
    assert datasets.read_dataset(folder).trigger_word == "ohwx"
    assert not any("missing" in problem for p in datasets.read_dataset(folder).images for problem in p.problems)
    with pytest.raises(ConfigError, match="is empty"):
        datasets.add_trigger_word(folder, " ")


def test_a_row_that_points_out_of_the_dataset_shows_nothing(folder, tmp_path):
    shutil.copy(next((folder / "images").iterdir()), tmp_path / "secret.png")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[0] |= {"file_name": "../secret.png", "text": "<script>x</script>"}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    image = next(p for p in datasets.read_dataset(folder).images if p.file_name == "../secret.png")
    card = card_html(folder, image)
    assert "data:image" not in card and "<script" not in card
    assert datasets.own_file(folder, "../secret.png") is None and datasets.own_file(folder, "/etc/passwd") is None


def test_what_is_no_dataset_is_said_to_be_none(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"holds no metadata\.jsonl"):
        datasets.read_dataset(tmp_path / "none")
    (folder / "preprocess_report.json").unlink()
    dataset = datasets.read_dataset(folder)
    assert len(dataset.images) == 5 and dataset.left_out == []
    with pytest.raises(ConfigError, match="prepare it again"):
        dataset.config()
    (folder / "metadata.jsonl").write_text("{half\n")
    with pytest.raises((ConfigError, DataError)):
        datasets.read_dataset(folder)


def test_one_caption_is_made_anew_by_the_captioner_of_the_dataset(captioned_photographs, tmp_path):
    """By a tiny Florence-2 with random weights: what it says is nothing, that it says it is what counts."""
    from examples.tiny_florence2 import save_tiny_florence2

    model, folder = tmp_path / "florence", tmp_path / "cat"
    save_tiny_florence2(model)
    flags = ["--caption_model", str(model), "--caption_max_new_tokens", "8", "--caption_num_beams", "1"]
    assert prepare(captioned_photographs, folder, *flags) == 0
    image = datasets.read_dataset(folder).images[0]
    before = texts(folder)
    text = recaption(folder, image.file_name)
    assert text.startswith("sks") and texts(folder) == {**before, image.source: text}
    with pytest.raises(ConfigError, match="no longer in the dataset"):
        recaption(folder, "images/none.png")


def test_a_dataset_without_a_captioner_says_so_instead_of_captioning(folder):
    with pytest.raises(ConfigError, match="without a captioner"):
        recaption(folder, datasets.read_dataset(folder).images[0].file_name)


# --- drawing ---


def run_with_files(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pytorch_lora_weights.safetensors").touch()
    return tmp_path / "run"


def test_a_drawing_that_makes_no_sense_is_refused_with_all_its_problems(tmp_path):
    run = run_with_files(tmp_path)
    with pytest.raises(ConfigError) as caught:
        drawing_request(run, ["checkpoint-9"], " ", "much", None, 0, float("nan"), 100)
    assert len(caught.value.problems) == 7
    with pytest.raises(ConfigError, match=f"more than {MOST_IMAGES}"):
        drawing_request(run, ["final"], "a\n" * 101, "1", 0, 20, 5, 1024)
    request = drawing_request(run, ["final"], "a cat\n\n a dog", "0.5, 1", 3, 20, 5, 1024)
    assert (request["prompts"], request["weights"], request["seed"]) == (["a cat", "a dog"], [0.5, 1.0], 3)


# --- several at once ---


def with_a_repeat(folder) -> str:
    """The first picture stands there twice, and a line about something else between."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[1:1] = [{**rows[0], "text": "the second"}, {"note": "mine"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows[0]["file_name"]


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_row_of_a_picture_keeps_its_own_caption_and_other_lines_stay(folder):
    before = len(lines(folder))
    name = with_a_repeat(folder)
    of_it = {p.place: p for p in datasets.read_dataset(folder).images if p.file_name == name}
    assert [of_it[place].text for place in (0, 1)] == [lines(folder)[0]["text"], "the second"]
    assert datasets.save_text(folder, name, "the second", "changed", place=1)
    assert datasets.save_text(folder, name, of_it[0].text, "the first", place=0)
    assert [row.get("text") for row in lines(folder)[:3]] == ["the first", "changed", None]
    assert lines(folder)[2] == {"note": "mine"} and len(lines(folder)) == before + 2
    assert datasets.add_trigger_word(folder, "ohwx") and lines(folder)[2] == {"note": "mine"}


def test_a_row_that_has_moved_is_found_by_what_was_seen(folder):
    name = with_a_repeat(folder)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(folder)[1:]))
    assert datasets.save_text(folder, name, "the second", "changed", place=1)
    assert lines(folder)[0]["text"] == "changed"


def test_of_two_who_save_at_the_same_moment_one_is_told(folder):
    """Both have read the caption before either writes."""
    image = datasets.read_dataset(folder).images[0]
    start, told = threading.Barrier(8), []

    def save(number: int) -> None:
        start.wait()
        try:
            datasets.save_text(folder, image.file_name, image.text, f"sks, by {number}")
        except ConfigError as error:
            told.append(str(error))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 7 and all("changed elsewhere" in words for words in told)


def test_a_caption_typed_while_the_captioner_thinks_is_kept(folder, monkeypatch):
    """And one that is made anew leaves the old one in before_recaption.jsonl."""
    from webui.runs import recaption as module

    image = datasets.read_dataset(folder).images[0]
    captioner = types.SimpleNamespace(load=lambda: contextlib.nullcontext(None))
    plan = types.SimpleNamespace(check=lambda: None, captioners=[captioner], clean=False, is_several=False)
    monkeypatch.setattr(module, "plan_of", lambda config: plan)

    def typed(caption, images):
        datasets.save_text(folder, image.file_name, image.text, "sks, mine")
        return [("theirs", None)]

    monkeypatch.setattr(module, "caption_batch", typed)
    with pytest.raises(ConfigError, match="was changed elsewhere"):
        recaption(folder, image.file_name)
    before = folder / ".preprocess" / "before_recaption.jsonl"
    assert texts(folder)[image.source] == "sks, mine" and not before.exists()
    monkeypatch.setattr(module, "caption_batch", lambda caption, images: [("theirs", None)])
    assert recaption(folder, image.file_name) == texts(folder)[image.source] == "sks, theirs"
    assert json.loads(before.read_text())["text"] == "sks, mine"


def test_caption_anew_starts_the_captioner_of_the_dataset_and_says_where_there_is_none(folder, tmp_path):
    context = Context(Workspace(tmp_path.parent), Jobs(tmp_path / "jobs"))
    captions = Captions(context)
    with pytest.raises(ConfigError, match="without auto-caption"):
        captions.require_captioner(folder)
    report = json.loads((folder / "preprocess_report.json").read_text())
    report["settings"]["caption_model"] = "some/captioner"
    (folder / "preprocess_report.json").write_text(json.dumps(report))
    captions.require_captioner(folder)


def test_a_caption_whose_dataset_has_gone_says_so_and_not_that_none_was_chosen(tmp_path):
    captions = Captions(Context(Workspace(tmp_path), Jobs(tmp_path / "jobs")))
    key = json.dumps({"dataset": "p/d", "file": "a.png", "text": "x", "place": 0})
    assert not captions.save_row(key, "x"), "nothing was typed"
    with pytest.raises(ConfigError, match=r"a\.png is no longer in the dataset: load it again"):
        captions.save_row(key, "typed")
