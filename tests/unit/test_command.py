"""`sdxl-lora COMMAND` runs what `python -m` runs, with the same arguments and exit codes."""

import subprocess
import sys
from importlib import metadata, util

import pytest

from sdxl_lora import __main__ as command
from tests.helpers.paths import ROOT


def run(*words):
    return subprocess.run([sys.executable, "-m", "sdxl_lora", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_is_a_program(name):
    module = command.COMMANDS[name][0]
    found = util.find_spec(f"{module}.__main__") if util.find_spec(module).submodule_search_locations else None
    assert found or '__name__ == "__main__"' in (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def test_a_command_gets_its_arguments_and_gives_its_exit_code(tmp_path):
    helped = run("train", "--help")
    assert helped.returncode == 0 and "--train_data_dir" in helped.stdout
    wrong = run("train", "--rank", "0", "--output_dir", str(tmp_path / "run"))
    assert wrong.returncode == 2 and "rank is 0" in wrong.stderr + wrong.stdout
    closed = run("ui", "--host", "0.0.0.0", "--settings", str(tmp_path / "ui.yaml"))
    assert closed.returncode == 2 and "set a password" in closed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_typo_is_told_with_the_nearest_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sdxl-lora", "trian"])
    assert command.main() == 2
    assert "did you mean train?" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["sdxl-lora"])
    assert command.main() == 2 and "preprocess" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["sdxl-lora", "--help"])
    assert command.main() == 0 and "preprocess" in capsys.readouterr().out


def test_the_version_is_that_of_what_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sdxl-lora", "--version"])
    monkeypatch.setattr(command.metadata, "version", lambda name: {"sdxl-lora-trainer": "1.2"}[name])
    assert command.main() == 0 and capsys.readouterr().out == "1.2\n"

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(command.metadata, "version", missing)
    assert command.main() == 2 and "pip install -e ." in capsys.readouterr().err
