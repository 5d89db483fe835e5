"""Differences of Windows and macOS, as far as they can be simulated on Linux."""

import ast
import contextlib
import importlib
import os
import pkgutil
import re
import signal
import sys

import psutil
import pytest

from preprocess.__main__ import main as preprocess
from sdxl_lora.config.dataset_spec import DatasetEntry, parse_entry
from sdxl_lora.config.names import check_name
from sdxl_lora.errors import DiskError
from sdxl_lora.io import file_system
from sdxl_lora.io.file_system import flush_to_disk, remove, replace, write_whole
from sdxl_lora.operating_system import (
    PROCESSES,
    end_all,
    is_alive,
    is_reserved_name,
    launcher,
    signal_named,
    start_apart,
)
from sdxl_lora.run.events import read_events
from sdxl_lora.run.requests import StopRequest
from sdxl_lora.run.status import read_status
from sdxl_lora.sampling.generate import sample_path
from tests.helpers import only_here
from tests.helpers.forking import CONTEXT, leave, settle
from tests.helpers.paths import ROOT

SOURCES = [*ROOT.glob("sdxl_lora/**/*.py"), *ROOT.glob("preprocess/**/*.py"), ROOT / "train_sdxl_lora.py"]

OURS = ("preprocess", "sdxl_lora", "train_sdxl_lora")
NO_SIGNALS = ("SIGKILL", "SIGSTOP", "SIGCONT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGQUIT")
NO_CALLS = ("fork", "killpg", "getpgid", "setsid", "getuid", "geteuid", "uname", "sched_getaffinity", "mkfifo")


def test_every_module_can_be_imported_without_what_windows_lacks(tmp_path):
    log = tmp_path / "log"
    process = CONTEXT.Process(target=import_anew, args=(log, tmp_path / "run"))
    process.start()
    process.join(300)
    printed = log.read_text(encoding="utf-8")
    assert process.exitcode == 0, printed
    number, reason = printed.split()[-2:]
    assert int(number) > 100 and reason == "SIGINT"


def import_anew(log, run_folder):
    """In a process that has all libraries: import our own modules again without what Windows lacks."""
    settle(log, {})
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.modules["torch.distributed.rendezvous"]._rendezvous_handlers.pop("living")  # ours registers it, once
    for owner, names in ((signal, NO_SIGNALS), (os, NO_CALLS)):
        for name in names:
            delattr(owner, name)
    sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))
    packages = [importlib.import_module(name) for name in OURS[:2]]
    names = [
        one.name for package in packages for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    for name in (*names, "train_sdxl_lora"):
        importlib.import_module(name)
    session = sys.modules["sdxl_lora.run.session"]
    with session.Run(run_folder), session.StopRequest(run_folder) as stop:
        signal.raise_signal(signal.SIGINT)
        print(len(names), stop.reason())
    leave(lambda: 0)


def test_one_module_alone_knows_the_systems():
    words = re.compile(
        r"sys\.platform|os\.name\b|platform\.system|SIGKILL|SIGSTOP|SIGUSR1|killpg|start_new_session|creationflags"
        r"|sched_getaffinity|os\.replace|os\.rename|\.fsync\(|import fcntl|import resource|get_context"
    )
    found = {}
    for path in SOURCES:
        code = "\n".join(ast.unparse(node) for node in without_docstrings(ast.parse(path.read_text(encoding="utf-8"))))
        if path.name != "operating_system.py" and (words_there := words.findall(code)):
            found[path.name] = words_there
    assert found == {"file_system.py": ["sys.platform", ".fsync(", "os.replace", ".fsync("]}, "beside it, for files"


def without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return tree.body


def test_texts_are_read_and_written_in_a_named_encoding():
    """Beside ruff's PLW1514, which does not see through attributes."""
    bare = [
        f"{path.name}:{node.lineno}"
        for path in [*SOURCES, *ROOT.glob("examples/**/*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("read_text", "write_text") and "encoding" not in {word.arg for word in node.keywords}
    ]
    assert bare == []


def test_worker_processes_are_started_anew_not_forked(monkeypatch):
    assert PROCESSES.get_start_method() == "spawn"
    monkeypatch.setattr(only_here, "CHANGED", True)
    with PROCESSES.Pool(1) as pool:
        assert pool.apply_async(only_here.is_changed).get(120) is False
    for path in SOURCES:
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"multiprocessing\.(Pool|Process|Queue|Manager)\(|mp\.Process", code), path
        assert "ProcessPoolExecutor(" not in code or "mp_context=PROCESSES" in code, path


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(file_system, "PAUSES", (0,) * 8)


def held_open(monkeypatch, function, times):
    """Let os.<function> refuse so often, as Windows does while a scanner or a page has the file open."""
    real, left = getattr(os, function), [times]

    def refusing(*arguments, **more):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, "The process cannot access the file", str(arguments[0]))
        return real(*arguments, **more)

    monkeypatch.setattr(os, function, refusing)


def test_a_file_that_another_program_reads_is_replaced_a_moment_later(tmp_path, monkeypatch, no_pauses):
    path = tmp_path / "status.json"
    path.write_text("old", encoding="utf-8")
    held_open(monkeypatch, "replace", 8)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_one_that_stays_open_is_named_and_stays_as_it_was(tmp_path, monkeypatch, no_pauses):
    path = tmp_path / "cat.safetensors"
    path.write_text("old", encoding="utf-8")
    held_open(monkeypatch, "replace", 9)
    with pytest.raises(DiskError, match=r"cannot rename .* to .*cat\.safetensors .*close the programs"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_removing_waits_too_and_leaves_what_a_link_leads_to(tmp_path, monkeypatch, no_pauses):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").touch()
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    remove(tmp_path / "link")
    assert (folder / "inner" / "file").exists()
    held_open(monkeypatch, "rmdir", 3)
    remove(folder)
    remove(folder)  # gone already
    assert list(tmp_path.iterdir()) == []


def test_a_full_disks_error_names_the_file_and_leaves_no_half(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as raised:
        write_whole(tmp_path / "a.png", b"x" * 1000)
    assert raised.value.filename == str(tmp_path / "a.png") and list(tmp_path.iterdir()) == []


def test_files_and_folders_are_flushed(tmp_path):
    write_whole(tmp_path / "a", b"x")
    flush_to_disk(tmp_path / "a")
    flush_to_disk(tmp_path)
    replace(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"


CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; print('日本', flush=True); time.sleep(600)"])
print(child.pid, sys.flags.utf8_mode, "äöü 日本 \\U0001f600", flush=True); child.wait()
"""


@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_started_apart_prints_any_letter_and_ends_with_its_children(tmp_path, at_once):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    with open(tmp_path / "log", "wb") as log:
        process = start_apart([sys.executable, "-c", CHILD], tmp_path, log, environment)
    while (tmp_path / "log").read_bytes().count(b"\n") < 2:
        assert process.poll() is None, (tmp_path / "log").read_bytes()
    text = (tmp_path / "log").read_text(encoding="utf-8")
    pid, mode = map(int, re.search(r"(\d+) (\d) äöü 日本 \U0001f600\n", text).groups())
    assert mode == 1 and "日本\n" in text
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    end_all(process.pid, at_once)
    process.wait(60)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)
    assert not is_alive(pid)
    end_all(process.pid)  # gone already


def test_a_launcher_that_may_not_be_looked_at_is_none(tmp_path, monkeypatch):
    def refused(self):
        raise psutil.AccessDenied(self.pid)

    for name in ("cmdline", "status"):
        monkeypatch.setattr(psutil.Process, name, refused)
    assert launcher() is None and StopRequest(tmp_path).reason() is None
    assert is_alive(os.getpid()), "it is there"


def test_signals_that_a_system_lacks_are_none():
    assert signal_named("SIGTERM").name == "SIGTERM" and signal_named("SIGBREAK") is None


@pytest.mark.parametrize(
    "name", ["con", "NUL", "aux.safetensors", "Com1", "lpt9.txt", "PRN", "con.a.b", "COM¹", "nul "]
)
def test_the_names_of_windows_devices_are_no_files(name):
    assert is_reserved_name(name)
    if re.fullmatch(r"[\w.]+", name, re.ASCII):
        with pytest.raises(ValueError, match="is a device name on Windows"):
            check_name(name)


@pytest.mark.parametrize("name", ["cone", "nul-1", "com", "com10", "auxiliary", "a.con", "lpt", "console"])
def test_names_that_only_begin_like_a_device_are_names(name):
    check_name(name)
    assert not is_reserved_name(name)


def test_a_drives_letter_is_no_folder_with_repeats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_entry("D:2024") == DatasetEntry("D:2024")
    assert parse_entry("d:10") == DatasetEntry("d:10")
    assert parse_entry(r"C:\cats:3") == DatasetEntry(r"C:\cats", repeats=3)
    assert parse_entry(r"C:\2024") == DatasetEntry(r"C:\2024")
    assert parse_entry("D:2024:2") == DatasetEntry("D:2024", repeats=2)
    assert parse_entry("./D:2") == DatasetEntry("./D", repeats=2)
    (tmp_path / "D").mkdir()
    assert parse_entry("D:2") == DatasetEntry("D", repeats=2)


def test_folders_with_blanks_umlauts_and_250_letters_go_the_whole_way(tmp_path, photographs, tiny_base, train):
    """Base, pictures, captions, dataset, caches, samples, checkpoints, a resumed run, the LoRA."""
    odd = tmp_path / "Bilder für Zoë, 日本 'neu' & alt"
    odd /= "x" * (250 - len(str(odd)) - 1)
    assert len(str(odd)) == 250
    raw = odd / "roh ä"
    raw.mkdir(parents=True)
    for number, path in enumerate(sorted(photographs.iterdir())):
        stem = f"Größe {number} 日本" if number else "y" * 240
        (raw / f"{stem}{path.suffix}").write_bytes(path.read_bytes())
        (raw / f"{stem}.txt").write_text(f"Straße {number}", encoding="utf-8")
    base = odd / "base ü"
    base.symlink_to(tiny_base, target_is_directory=True)
    flags = ["--resolution", "64", "--caption_model", "none", "--num_workers", "1"]
    assert preprocess(["--input_dir", str(raw), "--output_dir", str(odd / "fertig ß"), *flags]) == 0
    for name, data, file in (("aus Bildern", raw, "aus-Bildern"), ("my cat Ä", odd / "fertig ß", "my-cat-A")):
        settings = {
            "train_data_dir": str(data), "output_dir": str(odd / name),
            "cache_dir": str(odd / "cache ö"), "pretrained_model_name_or_path": str(base),
            "validation_prompt": ("a Straße",), "num_validation_images": 1, "validation_inference_steps": 1,
            "checkpointing_steps": 1,
        }  # fmt: skip
        train(**settings, max_train_steps=1)
        run = train(**settings, max_train_steps=2)
        assert (
            read_status(run)["step"] == 2 and (run / "checkpoint-2").is_dir() and (run / f"{file}.safetensors").exists()
        )
        assert sample_path(run / "samples", 2, 0, 0).exists()
        assert f"the LoRA files are called {file}" in (run / "events.jsonl").read_text(encoding="utf-8")
        events = [event["event"] for event in read_events(run / "events.jsonl")]
        assert events.count("finished") == 2 and "failed" not in events
