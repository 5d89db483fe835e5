"""Every command and every config that we ship parses, and every file the README names is there."""

import re
import shlex

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import flat_fields
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.tools.__main__ import main as tools
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_parses(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if "run.yaml" in words:
        words[words.index("run.yaml")] = "examples/demo.yaml"
    if words[:2] == ["accelerate", "launch"]:
        arguments = launch_command_parser().parse_args(words[2:])
        if arguments.module:
            load_config(PreprocessConfig, arguments.training_script_args)
            return
        assert (ROOT / arguments.training_script).is_file()
        if arguments.config_file:
            assert load_config_from_file(arguments.config_file)
        if arguments.training_script == "train_sdxl_lora.py":
            load_config(TrainConfig, arguments.training_script_args)
    elif words[:2] == ["python", "train_sdxl_lora.py"]:
        load_config(TrainConfig, words[2:])
    elif words[:3] == ["python", "-m", "preprocess"]:
        load_config(PreprocessConfig, words[3:])
    elif words[0] == "sbatch":
        script = words.index("examples/slurm.sh")
        assert (ROOT / words[script]).is_file() and load_config(TrainConfig, ["--output_dir", *words[script + 1 :]])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        assert (ROOT / words[3]).is_file()
    elif words[:3] == ["python", "-m", "sdxl_lora.tools"]:
        assert tools(words[3:]) in (2, 5), "the files are not there; a wrong flag would end the program"
    elif words[:2] == ["python", "-m"]:
        module = ROOT / words[2].replace(".", "/")
        assert words[2] == "pytest" or module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    else:
        pytest.fail(f"no test knows how to check {command!r}")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_config_parses(path):
    assert load_config(TrainConfig, ["--config", str(path)]).output_dir


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_launch_files_say_processes_and_machines_and_nothing_else(path):
    assert load_config_from_file(str(path)).num_processes >= 1
    settings = yaml.safe_load(path.read_text())
    allowed = {"compute_environment", "distributed_type", "num_machines", "num_processes", "use_cpu", "gpu_ids"}
    assert set(settings) <= allowed | {"machine_rank", "main_process_ip", "main_process_port", "rdzv_backend"}


def test_the_tree_in_the_readme_names_every_module():
    tree = README.split("## Where things are")[1]
    modules = [path.name for path in (ROOT / "sdxl_lora").glob("*.py") if not path.name.startswith(("__", "lora_"))]
    assert [name for name in modules if name not in tree and name.removesuffix(".py") not in tree] == []


def test_requirements_are_exact():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert line.startswith("-r ") or re.match(r"[A-Za-z0-9_-]+==[\w.]+( *[;#].*)?$", line), line


def test_every_flag_in_the_readme_is_a_setting():
    settings = {name for config in (TrainConfig, PreprocessConfig) for name in flat_fields(config)}
    of_others = {"config", "help"}  # ours for a YAML file, then the launcher's and Slurm's
    of_others |= {"config_file", "num_processes", "module", "num_machines", "machine_rank", "main_process_ip"}
    of_others |= {"max_restarts", "nodes", "gpus"}
    of_page = {"host", "port", "settings"}
    of_tools = {"to", "weight", "weights", "loras", "energy", "export", "step", "best"}
    flags = set(re.findall(r"--([a-z][a-z_0-9]+)", README))
    known = settings | {f"no_{name}" for name in settings} | of_others | of_page | of_tools
    assert sorted(flags - known) == []
