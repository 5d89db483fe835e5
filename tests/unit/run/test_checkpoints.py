"""A checkpoint is whole or not there; what is wrong with one is said."""

import errno
import json
import os
import random
import shutil
from types import SimpleNamespace

import pytest

from sdxl_lora.errors import CheckpointError, DiskError
from sdxl_lora.run.checkpoints import (
    check_facts,
    checkpoints,
    choose_checkpoint,
    main,
    problem_with,
    publish,
    remove_leftovers,
    rotate,
)
from sdxl_lora.run.disk_errors import disk_errors

FACTS = {"rank": 16, "seed": 0}


def make(folder, step, facts=FACTS):
    temporary = folder / f".tmp-checkpoint-{step}"
    temporary.mkdir()
    (temporary / "weights.safetensors").write_bytes(os.urandom(1000))
    publish(temporary, folder / f"checkpoint-{step}", {"step": step, "facts": facts})
    return folder / f"checkpoint-{step}"


@pytest.fixture
def run(tmp_path):
    for step in (5, 10, 100):
        make(tmp_path, step)
    notes = []
    return SimpleNamespace(
        folder=tmp_path,
        notes=notes,
        choose=lambda wanted="latest", facts=FACTS: choose_checkpoint(tmp_path, wanted, facts, notes.append),
    )


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "its checksum differs": lambda folder: flip_a_bit(folder / "weights.safetensors"),
    "has 400 bytes, it had 1000": lambda folder: os.truncate(folder / "weights.safetensors", 400),
    "weights.safetensors is missing": lambda folder: (folder / "weights.safetensors").unlink(),
    "manifest.json is missing or damaged": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json is missing or damaged (Exp": lambda folder: (folder / "manifest.json").write_text("{"),
    "manifest.json is missing or damaged (its": lambda folder: (folder / "manifest.json").write_text("[1]"),
}


def test_the_newest_is_taken_by_number_not_by_name(run):
    assert [path.name for path in checkpoints(run.folder)] == ["checkpoint-5", "checkpoint-10", "checkpoint-100"]
    assert run.choose().name == "checkpoint-100" and not run.notes


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_one_is_rejected_by_name_and_reason_and_the_next_older_taken(run, words):
    DAMAGE[words](run.folder / "checkpoint-100")
    assert run.choose().name == "checkpoint-10"
    assert len(run.notes) == 1 and "checkpoint-100" in run.notes[0] and words in run.notes[0]
    with pytest.raises(CheckpointError, match="checkpoint-100 cannot be used"):
        run.choose("checkpoint-100")


def test_with_none_whole_nothing_is_started_anew(run):
    for path in checkpoints(run.folder):
        flip_a_bit(path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact"):
        run.choose()


def test_a_name_that_is_not_there_lists_what_is(run):
    with pytest.raises(CheckpointError, match="no checkpoint checkpoint-7; there are: checkpoint-5, checkpoint-10"):
        run.choose("checkpoint-7")
    assert run.choose("checkpoint-5").name == "checkpoint-5" == run.choose(str(run.folder / "checkpoint-5")).name


def test_starting_anew_is_for_folders_without_checkpoints(run, tmp_path):
    with pytest.raises(CheckpointError, match="holds checkpoints up to checkpoint-100"):
        run.choose(None)
    assert choose_checkpoint(tmp_path / "empty", None, FACTS, print) is None
    assert choose_checkpoint(tmp_path / "empty", "latest", FACTS, print) is None


def test_other_settings_are_refused_with_a_table(run):
    with pytest.raises(CheckpointError) as error:
        run.choose(facts={"rank": 8, "seed": 0, "new": 1})
    rows = str(error.value).splitlines()[2:]
    assert [row.split() for row in rows] == [["new", "None", "1"], ["rank", "16", "8"]]
    check_facts(FACTS, dict(FACTS), run.folder)


def test_rotation_keeps_the_newest_and_a_redone_step_replaces_its_checkpoint(run):
    rotate(run.folder, 2)
    assert [path.name for path in checkpoints(run.folder)] == ["checkpoint-10", "checkpoint-100"]
    before = (run.folder / "checkpoint-100" / "weights.safetensors").read_bytes()
    make(run.folder, 100)
    assert problem_with(run.folder / "checkpoint-100") is None
    assert (run.folder / "checkpoint-100" / "weights.safetensors").read_bytes() != before


def test_leftovers_are_removed_and_never_chosen(run):
    shutil.copytree(run.folder / "checkpoint-100", run.folder / ".tmp-checkpoint-200")
    (run.folder / "checkpoint-300x").mkdir()
    assert run.choose().name == "checkpoint-100"
    assert [path.name for path in remove_leftovers(run.folder)] == [".tmp-checkpoint-200"]
    assert not (run.folder / ".tmp-checkpoint-200").exists()


def test_what_is_no_folder_is_no_checkpoint_and_in_nobodys_way(run):
    names = ("checkpoint-300", ".tmp-checkpoint-7")
    for name in names:
        (run.folder / name).write_text("mine", encoding="utf-8")
    (run.folder / "checkpoint-400").symlink_to("nowhere")
    assert run.choose().name == "checkpoint-100"
    rotate(run.folder, 2)
    assert [path.name for path in checkpoints(run.folder)] == ["checkpoint-10", "checkpoint-100"]
    assert (run.folder / "checkpoint-300").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in remove_leftovers(run.folder)] == [".tmp-checkpoint-7"]
    for step in (300, 400):
        with pytest.warns(
            UserWarning, match=f"checkpoint-{step} was not a checkpoint: it is now checkpoint-{step}-moved"
        ):
            assert problem_with(make(run.folder, step)) is None
    assert (run.folder / "checkpoint-300-moved-away").read_text(encoding="utf-8") == "mine"
    assert (run.folder / "checkpoint-400-moved-away").is_symlink()
    assert run.choose().name == "checkpoint-400"


def test_a_checkpoint_that_is_a_link_is_used_and_goes_without_what_it_leads_to(run, tmp_path_factory):
    """As of a person who has moved a large one to another disk."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for step in (5, 100):
        (run.folder / f"checkpoint-{step}").rename(elsewhere / f"checkpoint-{step}")
        (run.folder / f"checkpoint-{step}").symlink_to(elsewhere / f"checkpoint-{step}", target_is_directory=True)
    before = (elsewhere / "checkpoint-100" / "weights.safetensors").read_bytes()
    assert run.choose().name == "checkpoint-100"
    rotate(run.folder, 2)
    assert [path.name for path in checkpoints(run.folder)] == ["checkpoint-10", "checkpoint-100"]
    make(run.folder, 100)
    assert not (run.folder / "checkpoint-100").is_symlink()
    (run.folder / ".tmp-checkpoint-9").symlink_to(elsewhere, target_is_directory=True)
    assert [path.name for path in remove_leftovers(run.folder)] == [".tmp-checkpoint-9"]
    assert (elsewhere / "checkpoint-100" / "weights.safetensors").read_bytes() == before
    assert (elsewhere / "checkpoint-5" / "manifest.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("ios_base::clear: unspecified iostream_category error"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        *(Exception(f"Error while serializing: I/O error: x (os error {number})") for number in (27, 28, 122)),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=str,
)
def test_a_full_disk_is_known_by_whatever_words_a_library_has_for_it(tmp_path, error):
    (tmp_path / ".tmp-checkpoint-1").mkdir()
    words = rf"cannot write to {tmp_path} \(.*\): [\d,]+ bytes are free\. Make room .* no good checkpoint yet"
    with pytest.raises(DiskError, match=words), disk_errors(tmp_path, tmp_path / ".tmp-checkpoint-1"):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error, remedy",
    [
        (
            OSError(errno.EROFS, "Read-only file system"),
            "Mount it for writing too, or choose another folder, and",
        ),
        (Exception("Error while serializing: I/O error: x (os error 30)"), "Mount it for writing"),
        (OSError(errno.EIO, "Input/output error"), "Check the disk and the connection to it, and run"),
        (Exception("Error while serializing: I/O error: x (os error 5)"), "Check the disk"),
        (OSError(errno.ESTALE, "Stale file handle", "/run/status.json"), "Check the disk and the connection"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/run/x"), "Check the disk and the conn"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Make room and run"),
    ],
    ids=str,
)
def test_a_disk_that_fails_otherwise_is_not_called_full(tmp_path, error, remedy):
    with pytest.raises(DiskError, match=rf"cannot write to .* bytes are free\. {remedy}"), disk_errors(tmp_path):
        raise error


def test_other_errors_are_no_full_disk(tmp_path):
    of_socket = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
    for error in (RuntimeError("a size of 28"), Exception("x (os error 2)"), FileNotFoundError(2, "x"), of_socket):
        with pytest.raises(type(error)) as raised, disk_errors(tmp_path):
            raise error
        assert raised.value is error


def test_the_manifest_tells_sizes_checksums_versions_and_facts(run):
    manifest = json.loads((run.folder / "checkpoint-5" / "manifest.json").read_text())
    assert manifest["files"]["weights.safetensors"]["size"] == 1000
    assert manifest["facts"] == FACTS and manifest["step"] == 5 and "torch" in manifest["versions"]


def test_the_command_lists_what_is_whole_and_exports_from_it(run, capsys):
    (run.folder / "checkpoint-10" / "weights.safetensors").unlink()
    assert main([str(run.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["checkpoint-5", "checkpoint-10", "checkpoint-100"]
    assert [line.split("MiB")[1].strip() for line in lines] == ["intact", "weights.safetensors is missing", "intact"]
    target = run.folder / "exported.safetensors"
    assert main([str(run.folder), "--export", str(target), "--step", "5"]) == 0
    assert target.read_bytes() == (run.folder / "checkpoint-5" / "weights.safetensors").read_bytes()
    assert main([str(run.folder), "--export", str(target)]) == 4, "nothing is overwritten"
    assert main([str(run.folder), "--export", str(run.folder / "x"), "--step", "10"]) == 4
    assert "weights.safetensors is missing" in capsys.readouterr().err


def test_damage_of_any_kind_is_a_reason_and_never_a_traceback(run):
    """A hundred random damages of a checkpoint's files, its manifest included."""
    chance = random.Random(0)
    for number in range(100):
        folder = make(run.folder, 1000 + number)
        path = chance.choice(sorted(folder.iterdir()))
        data = bytearray(path.read_bytes())
        kind = chance.choice(["flip", "cut", "grow", "rubbish", "empty", "json"])
        if kind == "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "json":
            files = chance.choice([b"3", b"[]", b'{"x": 3}', b'{"x": {}}'])
            data = b'{"step": 1, "facts": {}, "files": ' + files + b"}"
        else:
            at = chance.randrange(len(data))
            data = {"cut": data[:at], "grow": data + b"x", "rubbish": os.urandom(at + 1), "empty": b""}[kind]
        path.write_bytes(data)
        assert problem_with(folder), (number, kind, path.name)
        shutil.rmtree(folder)
