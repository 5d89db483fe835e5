"""File systems that cannot flush a folder, rename, map or lock, each with what is done instead, said once."""

import errno
import fcntl
import os
import shutil
import socket
import warnings

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from preprocess.jobs.state import acquired
from preprocess.output.publish import publish as publish_dataset
from sdxl_lora.cache.records import read_record, write_record
from sdxl_lora.errors import ConfigError, DataError, DiskError
from sdxl_lora.io import file_system
from sdxl_lora.io import safetensors as safetensors_io
from sdxl_lora.io.file_system import flush_to_disk, remove, replace, write_whole
from sdxl_lora.io.safetensors import load_tensors, save_tensors, write_tensors
from sdxl_lora.models.base_files import Tensors
from sdxl_lora.run.checkpoints import MANIFEST, checkpoints, choose_checkpoint, problem_with, publish, rotate
from sdxl_lora.run.lock import RunLock
from sdxl_lora.run.session import Run, read_status

ANSWERS = [errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.ENOSYS]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(file_system, "_said", set())


def save(run, step):
    temporary = run / f".tmp-checkpoint-{step}"
    (temporary / "inside").mkdir(parents=True)
    (temporary / "weights").write_bytes(b"weights" * step)
    (temporary / "inside" / "more").write_text("more")
    publish(temporary, run / f"checkpoint-{step}", {"step": step, "facts": {}})


@pytest.mark.parametrize("no_flush_of_folders", ANSWERS, indirect=True)
def test_a_checkpoint_is_saved_where_folders_cannot_be_flushed(tmp_path, no_flush_of_folders):
    with pytest.warns(UserWarning, match="cannot flush folders to the disk") as said:
        save(tmp_path, 1)
        save(tmp_path, 2)
    assert len(said) == 1, "said once"
    assert [problem_with(path) for path in checkpoints(tmp_path)] == [None, None]
    write_tensors(tmp_path / "lora.safetensors", {"a": (torch.float32, (2,))}, lambda name: torch.ones(2), {})
    assert (tmp_path / "lora.safetensors").exists()


def test_a_disk_that_fails_while_flushing_still_ends_the_save(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        flush_to_disk(tmp_path)


def test_checkpoints_are_copied_where_nothing_can_be_renamed(tmp_path, no_rename):
    with pytest.warns(UserWarning, match="cannot rename") as said:
        for step in (1, 2, 3, 4):
            save(tmp_path, step)
        rotate(tmp_path, 2)
        save(tmp_path, 4)  # this step again
    assert len(said) == 1
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]
    assert [problem_with(path) for path in checkpoints(tmp_path)] == [None, None]
    assert not list(tmp_path.glob(".tmp*"))
    assert choose_checkpoint(tmp_path, "latest", None, print).name == "checkpoint-4"


@pytest.mark.parametrize("answer", [errno.EBUSY, errno.ESTALE, errno.EAGAIN, errno.EPERM, errno.EINTR, errno.ETIMEDOUT])
def test_a_file_that_is_busy_is_waited_for_and_then_told_of(tmp_path, monkeypatch, answer):
    """As CIFS, FUSE and NFS answer while another program has it open, or while a server comes back."""
    real, refused, waited = os.replace, [3], []

    def busy(source, target):
        if refused[0] > 0:
            refused[0] -= 1
            raise OSError(answer, os.strerror(answer))
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(file_system.time, "sleep", waited.append)
    write_whole(tmp_path / "status.json", b"1")
    assert (tmp_path / "status.json").read_bytes() == b"1" and len(waited) == 3
    refused[0] = 99
    with pytest.raises(DiskError, match=r"cannot rename .*status\.json .*close the programs that have it open"):
        write_whole(tmp_path / "status.json", b"2")
    assert (tmp_path / "status.json").read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1


def test_files_are_copied_over_to_another_device(tmp_path, monkeypatch):
    """A run's folder whose files are bind mounts or links into another file system."""

    def refuse(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match="cannot rename"):
        write_whole(tmp_path / "status.json", b"1")
    assert (tmp_path / "status.json").read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("answer", [errno.EBUSY, errno.ENOTEMPTY])
def test_a_folder_with_an_open_file_is_removed_in_the_end(tmp_path, monkeypatch, answer):
    """NFS keeps an open file under another name until it is let go."""
    (tmp_path / "old").mkdir()
    real, refused = shutil.rmtree, [2]

    def busy(path):
        if refused[0] > 0:
            refused[0] -= 1
            raise OSError(answer, os.strerror(answer))
        real(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    monkeypatch.setattr(file_system.time, "sleep", lambda _: None)
    remove(tmp_path / "old")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_copied_gets_its_manifest_last(tmp_path, no_rename, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in (MANIFEST, "a", "z"):
        (source / name).write_text(name)
    copied = []
    monkeypatch.setattr(file_system, "flush_to_disk", lambda path: copied.append(path.name))
    with pytest.warns(UserWarning):
        replace(source, tmp_path / "target", last=MANIFEST)
    assert copied == ["a", "z", MANIFEST] and not source.exists()


@pytest.mark.filterwarnings("ignore:the file system")
def test_status_records_and_tensors_are_written_where_nothing_can_be_renamed(tmp_path, no_rename):
    with Run(tmp_path) as run:
        run.update(state="training", step=3)
        assert read_status(tmp_path)["state"] == "training"
    assert read_status(tmp_path)["state"] == "done"
    record = {"mean": torch.arange(6.0).view(2, 3)}
    write_record(tmp_path / "00" / "record.safetensors", record)
    assert torch.equal(read_record(tmp_path / "00" / "record.safetensors")["mean"], record["mean"])
    save_tensors(record, tmp_path / "state.safetensors")
    assert torch.equal(load_tensors(tmp_path / "state.safetensors")["mean"], record["mean"])


@pytest.mark.parametrize("no_mapping", [errno.ENODEV, errno.EAGAIN, errno.EPERM, errno.ENOMEM], indirect=True)
def test_records_states_and_bases_are_read_where_files_cannot_be_mapped(tmp_path, no_mapping):
    path, tensors = tmp_path / "record.safetensors", {"mean": torch.arange(6.0), "std": torch.ones(2)}
    write_record(path, tensors)
    with pytest.warns(UserWarning, match="cannot map files into memory") as said:
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_record(path).items())
        assert torch.equal(load_tensors(path)["mean"], tensors["mean"])
        with Tensors([path]) as base:
            assert torch.equal(base.read("std"), tensors["std"])
    assert len(said) == 1
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="checksum"):
        read_record(path)
    with pytest.raises(DataError, match="damaged"):
        read_record(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("answer", [errno.EACCES, errno.EPERM, errno.ENOTTY, errno.EINVAL, errno.ENOLCK, errno.EBADF])
def test_a_folder_that_cannot_be_locked_is_held_by_signs_of_life(tmp_path, monkeypatch, answer):
    def flock(*_):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot lock"):
        first = RunLock(tmp_path)
    with pytest.raises(ConfigError, match=rf"another run \(pid {os.getpid()} on {socket.gethostname()}\)"):
        RunLock(tmp_path)
    first.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said already
        RunLock(tmp_path).release()


def test_without_locks_a_run_that_is_gone_is_followed_at_once(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "flock", flock)
    pid = os.spawnv(os.P_NOWAIT, "/bin/true", ["true"])
    os.waitpid(pid, 0)
    (tmp_path / ".holder").write_text(f'{{"host": "{socket.gethostname()}", "pid": {pid}}}')
    with pytest.warns(UserWarning, match="cannot lock"):
        RunLock(tmp_path).release()


def test_a_folder_that_may_not_be_written_is_still_said_to_be_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("sdxl_lora.run.lock.FileLock.acquire", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RunLock(tmp_path)


def test_a_file_of_safetensors_is_the_one_that_was_saved(tmp_path):
    """save_tensors is save_file where the file system does all."""
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    save_tensors(tensors, tmp_path / "ours.safetensors", {"x": "y"})
    save_file(tensors, tmp_path / "theirs.safetensors", {"x": "y"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("answer", [errno.EACCES, errno.EPERM, errno.EINVAL])
def test_a_dataset_is_prepared_where_nothing_can_be_locked(tmp_path, monkeypatch, answer):
    def flock(*_):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".preprocess").mkdir()
    with pytest.warns(UserWarning, match="cannot lock"):
        acquired(tmp_path).release()
    (tmp_path / ".preprocess" / "pid").write_text(str(os.getpid()))
    with pytest.raises(ConfigError, match="another preprocess"):
        acquired(tmp_path)


@pytest.mark.filterwarnings("ignore:the file system")
def test_a_dataset_is_published_where_nothing_can_be_renamed(tmp_path, no_rename):
    for name in ("a.png", "b.png"):
        staged = tmp_path / "staged"
        staged.mkdir(exist_ok=True)
        (staged / name).write_bytes(b"picture")
        publish_dataset(tmp_path, staged, [{"file_name": f"images/{name}", "text": "a cat"}], {"images/a.png"})
        assert (tmp_path / "images" / name).exists() and name in (tmp_path / "metadata.jsonl").read_text()
    assert not (tmp_path / "images" / "a.png").exists()


@pytest.mark.filterwarnings("ignore:the file system")
def test_a_training_is_saved_and_goes_on_where_next_to_nothing_works(train, tmp_path, monkeypatch, no_mapping):
    """No renaming, mapping, locking or flushing of folders where the run and its caches lie; other places can."""

    def refusing(real, number):
        def call(*arguments, **more):
            inside = [str(argument) for argument in arguments if isinstance(argument, str | os.PathLike)]
            if any(name.startswith(str(tmp_path)) for name in inside):
                raise OSError(number, os.strerror(number))
            return real(*arguments, **more)

        return call

    real_flock, real_fsync = fcntl.flock, os.fsync

    def name_of(descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        return os.readlink(f"/proc/self/fd/{number}")

    def flock(descriptor, operation):
        if name_of(descriptor).startswith(str(tmp_path)):
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        real_flock(descriptor, operation)

    def fsync(descriptor):
        if os.path.isdir(name_of(descriptor)):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real_fsync(descriptor)

    def refuse_to_save(*_):
        raise SafetensorError("Error while serializing: I/O error: Function not implemented (os error 38)")

    monkeypatch.setattr(os, "rename", refusing(os.rename, errno.ENOSYS))
    monkeypatch.setattr(os, "replace", refusing(os.replace, errno.ENOSYS))
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(safetensors_io, "save_file", refuse_to_save)
    settings = {
        "checkpointing_steps": 1, "validation_prompt": ("a cat",), "num_validation_images": 1,
        "validation_inference_steps": 1, "ema_decay": 0.9, "save_side_files": True,
    }  # fmt: skip
    run = train(max_train_steps=2, **settings)
    assert [problem_with(path) for path in checkpoints(run)] == [None, None]
    train(max_train_steps=3, **settings)
    assert [path.name for path in checkpoints(run)][-1] == "checkpoint-3"
    assert read_status(run)["state"] == "done" and (run / "run.safetensors").exists()
    assert len(list((run / "samples").glob("step-*.png"))) >= 2
