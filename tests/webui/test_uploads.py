"""Images brought in by pieces: whole or not there, gone on with after a break, nothing replaced, nothing elsewhere."""

import base64
import errno
import hashlib
import json
import os
import random
import re
import sys
import time
from collections import namedtuple

import pytest
from PIL import Image

from sdxl_lora.errors import ConfigError, DiskError
from sdxl_lora.folders.finder import find_images
from tests.helpers.configs import flat_preprocess_config
from tests.helpers.french import french
from webui.datasets import uploads
from webui.datasets.folders import image_folders
from webui.datasets.uploads import PIECE_BYTES, Incoming, begin, clean_name, compared, put
from webui.locale.i18n import say_problem
from webui.pages.upload_box import UploadBox
from webui.runs.context import Context
from webui.runs.jobs import Jobs
from webui.settings.workspace import Workspace
from webui.widgets.dataset_html import images_html
from webui.widgets.events import as_json


def sent(folder, name: str, data: bytes, changed: int = 1, most_pieces: int = 10**6):
    """As upload.js does it; the last answer."""
    file = Incoming(name, len(data), changed)
    (answer,) = begin(folder, [file])
    at = answer.at
    while answer.state in ("new", "there") and most_pieces:
        answer, most_pieces = put(folder, file, at, data[at : at + PIECE_BYTES]), most_pieces - 1
        at = answer.at
    return answer


def hashed(folder, name: str, data: bytes):
    """As upload.js asks about a file that is there, where its browser can hash."""
    return compared(folder, Incoming(name, len(data), 1), hashlib.sha256(data).hexdigest())


def photograph(captioned_photographs) -> bytes:
    """One of several pieces: what follows an image in its file is passed over."""
    return (captioned_photographs / "coffee.png").read_bytes() + random.Random(0).randbytes(3 * PIECE_BYTES)


def test_an_upload_that_breaks_off_goes_on_and_is_never_seen_half(captioned_photographs, tmp_path):
    folder, data = tmp_path / "images", photograph(captioned_photographs)
    assert sent(folder, "dog/a.png", data, most_pieces=2).at == 2 * PIECE_BYTES
    assert find_images(folder).sources == [] and list(find_images(folder).other_files) == [".uploading/"]
    assert begin(folder, [Incoming("dog/a.png", len(data), 1)])[0].at == 2 * PIECE_BYTES
    assert begin(folder, [Incoming("dog/a.png", len(data), 2)])[0].at == 0, "it was changed meanwhile: another file"
    out_of_turn = put(folder, Incoming("dog/a.png", len(data), 1), 0, data[:PIECE_BYTES])
    assert (out_of_turn.state, out_of_turn.at) == ("new", 2 * PIECE_BYTES), "sent twice is kept once"
    assert sent(folder, "dog/a.png", data).state == "done"
    assert sent(folder, "dog/a.txt", "ein Hündchen".encode()).state == "done"
    assert (folder / "dog" / "a.png").read_bytes() == data and not (folder / ".uploading").exists()
    (source,) = find_images(folder).sources
    assert (source.name, source.caption) == ("dog/a.png", "ein Hündchen")


def test_what_broke_off_is_kept_a_week_for_whoever_goes_on_and_then_removed_by_name(tmp_path, caplog):
    data, day, now = bytes(2 * PIECE_BYTES), 86400, 10**9
    ages = {"old.png": 8, "mine.png": 8, "new.png": 6}
    for name in ages:
        sent(tmp_path, name, data, most_pieces=1)
    for name, days in ages.items():
        part = tmp_path / ".uploading" / f"{Incoming(name, len(data), 1).key}.part"
        os.utime(part, (now - days * day, now - days * day))
    answers = begin(tmp_path, [Incoming("mine.png", len(data), 1)], now)
    assert [answer.at for answer in answers] == [PIECE_BYTES]
    left = {path.stem for path in (tmp_path / ".uploading").iterdir()}
    assert left == {Incoming(name, len(data), 1).key for name in ("mine.png", "new.png")}
    (said,) = caplog.messages
    assert Incoming("old.png", len(data), 1).key in said and "1.0 MB of an upload interrupted on 2001-09-0" in said


def test_what_is_there_is_done_where_it_is_the_same_and_is_never_replaced(captioned_photographs, tmp_path):
    data = photograph(captioned_photographs)
    assert sent(tmp_path, "a.png", data).state == "done"
    assert sent(tmp_path, "a.png", data, changed=7).state == "done", "sent once more"
    middle = len(data) // 2
    for other in (data[:-1] + b"x", data[:middle] + b"xxxx" + data[middle + 4 :], data[1:], data + b"x"):
        for answer in (sent(tmp_path, "a.png", other), hashed(tmp_path, "a.png", other)):
            assert answer.state == "refused" and "already there, and stays" in answer.why
    assert hashed(tmp_path, "a.png", data).state == "done" and hashed(tmp_path, "b.png", data).state == "new"
    assert sent(tmp_path, "a.txt", b"cat").state == "done" and sent(tmp_path, "a.txt", b"dog").state == "refused"
    assert (tmp_path / "a.png").read_bytes() == data and (tmp_path / "a.txt").read_bytes() == b"cat"
    twice = begin(tmp_path, [Incoming("b.png", 5), Incoming("B.png", 5), Incoming("b.txt", 5)])
    assert [answer.state for answer in twice] == ["new", "refused", "new"]


def test_what_the_disk_does_not_let_be_read_or_removed_is_told_and_stops_no_other_file(tmp_path, monkeypatch, caplog):
    def forbidden(path, *rest):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    assert sent(tmp_path, "a.png", b"abc").state == "done"
    sent(tmp_path, "old.png", bytes(2 * PIECE_BYTES), most_pieces=1)
    monkeypatch.setattr(uploads, "file_sha256", forbidden)
    monkeypatch.setattr(uploads, "open", forbidden, raising=False)
    monkeypatch.setattr(uploads, "remove", forbidden)
    for answer in (hashed(tmp_path, "a.png", b"abc"), put(tmp_path, Incoming("a.png", 3, 1), 0, b"abc")):
        assert answer.state == "refused" and answer.why.endswith("cannot be read: Permission denied")
        assert french(say_problem, answer.why).endswith("est illisible : Permission denied")
    next_year = 2 * time.time()
    assert [answer.state for answer in begin(tmp_path, [Incoming("b.png", 3)], next_year)] == ["new"]
    (said,) = caplog.messages
    assert Incoming("old.png", 2 * PIECE_BYTES, 1).key in said and "cannot be removed: Permission denied" in said


def test_no_name_leads_out_of_the_folder_or_cannot_be_a_file_s(tmp_path):
    cleaned = {
        "../../x.png": "x.png", "/etc/x.png": "etc/x.png", r"C:\photos\x.png": "C_/photos/x.png",
        "a/./../b.png": "a/b.png", "what?.png": "what_.png", "a\x00b\n.png": "a_b_.png", "CON.png": "_CON.png",
        "10_sks dog/1.jpg": "10_sks dog/1.jpg",
        "e\u0301te\u0301.jpg": "\u00e9t\u00e9.jpg", " x.png. ": "x.png", "\u202egnp.png": "_gnp.png",
    }  # fmt: skip
    assert {path: str(clean_name(path)) for path in cleaned} == cleaned
    for path in ("", "..", "/", "a/b/c/d/e/f.png", "x" * 300 + ".png"):
        with pytest.raises(ConfigError):
            clean_name(path)
    (tmp_path / "out").mkdir()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "out")
    (folder / "x.png").symlink_to(tmp_path / "nothing.png")
    refused = {
        "link/a.png": "leads out", "x.png": "leads out", ".DS_Store": "hidden", ".a/b.png": "hidden",
        "a.exe": "neither", "metadata.json": "neither",
        "a.tif": "not supported", "a/b/c/d/e/f.png": "more than 4 folders",
    }  # fmt: skip
    for name, words in refused.items():
        answer = put(folder, Incoming(name, 3), 0, b"abc")
        assert answer.state == "refused" and words in answer.why, name
    assert list((tmp_path / "out").iterdir()) == [] and not (tmp_path / "nothing.png").exists()
    assert begin(folder, [Incoming("a.png", 0)])[0].why == "an empty file"
    assert begin(folder, [Incoming("a.png", 2**40)])[0].state == "refused"


def test_a_piece_that_is_none_is_refused(tmp_path):
    file = Incoming("a.png", 10)
    for at, data in [(0, b""), (-1, b"a"), (8, b"abc"), (0, bytes(PIECE_BYTES + 1))]:
        with pytest.raises(ConfigError, match="are not a piece"):
            put(tmp_path, file, at, data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_disk_that_is_full_is_named_and_what_was_sent_stays(tmp_path, monkeypatch):
    import resource

    data = bytes(PIECE_BYTES) + b"the rest"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PIECE_BYTES + 3, limits[1]))
    try:
        with pytest.raises(DiskError, match=r"cannot write a\.png: .* Make room and send them again"):
            sent(tmp_path, "a.png", data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert begin(tmp_path, [Incoming("a.png", len(data), 1)])[0].at == PIECE_BYTES
    assert sent(tmp_path, "a.png", data).state == "done" and (tmp_path / "a.png").read_bytes() == data
    usage = namedtuple("usage", "total used free")(100, 100, 5_000_000)
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match="need 9 MB, 5 MB are free there: make room first"):
        begin(tmp_path / "not" / "yet", [Incoming("a.png", 9_000_000)])


def test_a_file_that_is_whole_but_did_not_get_its_name_gets_it_when_it_is_sent_again(tmp_path, monkeypatch):
    data = bytes(PIECE_BYTES) + b"the rest"

    def full(path):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(uploads, "flush_to_disk", full)
        with pytest.raises(DiskError, match="the disk is full"):
            sent(tmp_path, "a.png", data)
    assert list(find_images(tmp_path).other_files) == [".uploading/"]
    assert sent(tmp_path, "a.png", data).state == "done"
    assert (tmp_path / "a.png").read_bytes() == data and not (tmp_path / ".uploading").exists()


@pytest.fixture
def places(tmp_path) -> Workspace:
    return Workspace(tmp_path / "projects", images=tmp_path / "photos")


@pytest.fixture
def box(places) -> UploadBox:
    import gradio as gr

    with gr.Blocks(analytics_enabled=False):
        return UploadBox(Context(places, Jobs(places.projects)), gr.Dropdown([]))


def asked(box: UploadBox, data: bytes = b"", **facts) -> dict:
    into = {"project": "dog", "folder": "images"}
    return json.loads(as_json(box.take)(json.dumps({**into, **facts}), base64.b64encode(data).decode()))


def test_a_browser_is_answered_in_words_whatever_it_asks(box, places, monkeypatch):
    (answer,) = asked(box, begin=[["a.png", 3, 0]])["files"]
    assert answer == {"state": "new", "at": 0, "why": "", "name": "a.png"}
    assert asked(box, b"abc", file=["a.png", 3, 0], at=0)["state"] == "done"
    folder = places.projects / "dog" / "images"
    assert (folder / "a.png").read_bytes() == b"abc"
    for facts in (
        {"project": "../.."}, {"folder": "runs"}, {"folder": "a/b"}, {"file": ["a.png"], "at": 0}, {"begin": 7},
        {"project": "..", "begin": []}, {},
    ):  # fmt: skip
        assert "error" in asked(box, **facts), facts
    for odd in (("no json", "%"), ("[]", "")):
        assert "error" in json.loads(as_json(box.take)(*odd))
    (places.projects / "dog" / "dataset").mkdir()
    (places.projects / "dog" / "dataset" / "metadata.jsonl").touch()
    assert "is a prepared dataset" in asked(box, folder="dataset", begin=[])["error"]
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    monkeypatch.setattr(uploads, "remove_abandoned", lambda *asked: os.stat(places.projects / "none"))
    assert "No such file" in asked(box, begin=[["b.png", 3, 0]])["error"]


def test_folders_with_images_are_offered_and_what_is_in_one_is_shown(places, captioned_photographs):
    coffee = (captioned_photographs / "coffee.png").read_bytes()
    for path in ("dog/images", "dog/runs/one/samples", "dog/dataset/images", "dog/.hidden"):
        (places.projects / path).mkdir(parents=True)
        (places.projects / path / "a.png").write_bytes(coffee)
    (places.projects / "dog" / "dataset" / "metadata.jsonl").touch()
    (places.images / "2024" / "dogs").mkdir(parents=True)
    (places.images / "2024" / "dogs" / "b.png").write_bytes(coffee)
    assert image_folders(places) == [str(places.projects / "dog" / "images"), str(places.images / "2024" / "dogs")]
    assert image_folders(Workspace(places.projects / "none")) == []
    (places.projects / "dog" / "images" / "<b>.mov").touch()
    found = find_images(places.projects / "dog" / "images")
    html = images_html(found, True)
    assert "gradio_api/file=" in html and "<b>.mov" not in html and "&lt;b&gt;.mov" in html
    assert "gradio_api/file=" not in images_html(found, False)


def test_a_folder_shows_what_is_cut_off_what_is_too_small_and_what_a_person_took_out(tmp_path):
    for name, size in (("wide.png", (400, 200)), ("small.png", (30, 30)), ("out.png", (99, 99)), ("b.png", (128, 128))):
        Image.new("RGB", size).save(tmp_path / name)
    config = flat_preprocess_config(str(tmp_path), str(tmp_path / "out"), resolution=64, buckets="off")
    html = images_html(find_images(tmp_path), True, 3, config, {"out.png"})
    figures = {name: text for text in html.split("<figure")[1:] for name in re.findall(r"<strong>(.*?)</strong>", text)}
    assert list(figures) == ["b.png", "out.png", "small.png"] and "Show 1 more" in html
    assert "128x128 → 64x64, 0% cut off" in figures["b.png"] and "Not this one: b.png" in figures["b.png"]
    assert "left out by you" in figures["out.png"] and "Use it after all: out.png" in figures["out.png"]
    assert "smaller than its 64x64 target: pass “Enlarge small images”" in figures["small.png"]
    assert "<b>2</b>images" in html and "<b>2</b>files not used" in html
    html = images_html(find_images(tmp_path), True, 9, config)
    assert "400x200 → 64x64, 50% cut off" in html and "left:25.00%;top:0.00%;width:50.00%;height:100.00%" in html


def test_a_folder_of_very_many_files_is_not_walked_while_a_person_waits(box, tmp_path, monkeypatch):
    monkeypatch.setattr("webui.datasets.folders.MOST_FILES", 3)
    monkeypatch.setattr("webui.pages.upload_box.find_images", lambda folder: pytest.fail("walked"))
    for number in range(4):
        (tmp_path / "photos" / str(number)).mkdir(parents=True)
    assert "are checked when you prepare them" in box.described(f'"{tmp_path}"')
    assert box.described(str(tmp_path / "none")) == box.described(None) == ""
