"""Every command, setting, link and file that the documentation names is there and parses."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from docs.generate_settings import grouped_settings, settings_page
from preprocess.came_along import parse as parse_came_along
from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import flat_fields
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.run.requests import FILES
from sdxl_lora.select.__main__ import parse
from sdxl_lora.tools.__main__ import main as tools
from tests.helpers.paths import ROOT
from tests.helpers.pyproject import read_pyproject
from webui.settings.workspace import NAMES as PAGE_SETTINGS

NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md"]
NAMES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
EXTRAS = read_pyproject()["project"]["optional-dependencies"]


def blocks(text, language):
    """The code blocks of a page that are marked as being in this language; "" for those that are not marked."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for marked_as, block in fenced if marked_as == language]


COMMANDS = [
    pytest.param(command, id=f"{name}: {command}")
    for name, text in TEXTS.items()
    for language in ("sh", "bat", "powershell")
    for block in blocks(text, language)
    for line in block.splitlines()
    if (command := line.split("  #")[0].strip().replace("\\", "/"))
]


def test_there_are_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_documentation_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if "run.yaml" in words:
        words[words.index("run.yaml")] = "examples/demo.yaml"
    if words[:2] == ["accelerate", "launch"]:
        arguments = launch_command_parser().parse_args(words[2:])
        if arguments.module and arguments.training_script == "sdxl_lora.select":
            parse(arguments.training_script_args)
            return
        if arguments.module:
            assert arguments.training_script == "preprocess"
            load_config(PreprocessConfig, arguments.training_script_args)
            return
        assert arguments.training_script == "train_sdxl_lora.py"
        if arguments.config_file:
            assert load_config_from_file(arguments.config_file)
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
    elif words[:2] in (["pip", "install"], ["pip", "download"]):
        check_installation(words[2:])
    elif words[:2] == ["uv", "sync"]:
        check_extras(words[2:])
    elif words[0] == "docker":
        check_container(words[1:])
    elif words[:3] == ["python", "-m", "sdxl_lora.tools"]:
        assert tools(words[3:]) in (2, 5), "the files are not there; a wrong flag would end the program"
    elif words[:3] == ["python", "-m", "sdxl_lora.select"]:
        parse(words[3:])
    elif words[0] == "touch":
        assert Path(words[1]).name in FILES.values()
    elif words[:3] == ["python", "-m", "preprocess.came_along"]:
        parse_came_along(words[3:])
    elif words[:2] == ["python", "-m"]:
        assert is_module(words[2])
    else:
        assert re.match(
            r"(git clone|cd) .*sdxl-lora-trainer$|git pull$|(python3|py -3\.1[0-4]) -m venv \.venv$|"
            r"(source \.venv/bin/|\.venv/Scripts/)[Aa]ctivate(\.ps1)?$|mkdir -p [\w ]+$|"
            r"tensorboard --logdir runs/\w+/logs$|ruff (check|format) |mypy$",
            command,
        ), f"no test knows how to check {command!r}"


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return name == "pytest" or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_module_that_is_named_as_a_command_is_there(name):
    modules = set(re.findall(r"`python -m ([\w.]+)", TEXTS[name]))
    assert sorted(module for module in modules if not is_module(module)) == []


def check_installation(words):
    """The arguments of `pip install`: a file of requirements, the checkout itself, or a package as it is pinned."""
    if "-r" in words:
        assert (ROOT / words[words.index("-r") + 1]).is_file()
    elif words[0] == "-e":
        assert "[project]" in (ROOT / "pyproject.toml").read_text(encoding="utf-8") and words[1] == "."
    elif words == ["pillow-heif"]:
        assert EXTRAS["heic"][0].startswith("pillow-heif==")
    else:
        assert words[0] in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()


def check_extras(words):
    """The arguments of `uv sync`: extras of the package, or its group for development."""
    for flag, name in zip(words[::2], words[1::2], strict=True):
        assert (flag == "--extra" and name in EXTRAS) or (flag, name) == ("--group", "dev")


def check_container(words):
    """The arguments of docker: a service of compose.yaml, or the folder with the Dockerfile; then a command of ours."""
    if words[0] == "compose":
        services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
        known = {"build": "", "up": "", "down": "", "logs": "", "run": "--rm", "stop": ""}
        rest = [word for word in words[2:] if word not in ("--rm", "--detach", "--follow")]
        assert words[1] in known and (not rest or rest[0] in services), words
        command = rest[1:]
    else:
        assert words[0] == "build" and words[-1] == "." and (ROOT / "Dockerfile").is_file()
        command = []
    if command:
        assert command[:2] == ["python", "-m"] or command[:2] == ["python", "train_sdxl_lora.py"]
        if command[1] == "train_sdxl_lora.py":
            load_config(TrainConfig, command[2:])
        elif command[2] == "preprocess":
            load_config(PreprocessConfig, command[3:])
        else:
            assert is_module(command[2])


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=name) for name, text in TEXTS.items() for block in blocks(text, "yaml")]
)
def test_every_yaml_in_the_documentation_is_read(block, tmp_path):
    if set(yaml.safe_load(block)) <= set(PAGE_SETTINGS):
        return
    path = tmp_path / "settings.yaml"
    path.write_text(block, encoding="utf-8")
    assert load_config(TrainConfig, ["--config", str(path), "--output_dir", "run"])


def imports(text):
    """(module, name) of each name that a Python text imports from a module."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.name) for node in nodes for alias in node.names]


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_every_python_in_the_documentation_is_python_and_imports_what_is_there(name):
    ours = [pair for block in blocks(TEXTS[name], "python") for pair in imports(block) if is_module(pair[0])]
    assert ours
    for module, word in ours:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        there = [imported for _, imported in imports(text)] + re.findall(r"^(?:def |class )?(\w+)", text, re.MULTILINE)
        assert word in there, f"{module} has no {word}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_config_parses(path):
    assert load_config(TrainConfig, ["--config", str(path)]).output_dir


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_launch_files_say_processes_and_machines_and_nothing_else(path):
    assert load_config_from_file(str(path)).num_processes >= 1
    settings = yaml.safe_load(path.read_text())
    allowed = {"compute_environment", "distributed_type", "num_machines", "num_processes", "use_cpu", "gpu_ids"}
    assert set(settings) <= allowed | {"machine_rank", "main_process_ip", "main_process_port", "rdzv_backend"}


def test_the_readme_is_read_in_one_sitting():
    assert len(TEXTS["README.md"].splitlines()) <= 160


def tree_of(text):
    """The paths in the tree of a page: the first word of each line, indented by two blanks for each folder above it."""
    paths, above = [], []
    tree = next(block for block in blocks(text, "") if "accelerate_configs/" in block)
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], line.split()[0].rstrip("/")]
        paths.append("/".join(above))
    return paths


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_the_tree_names_what_is_there_and_every_package(name):
    tree = set(tree_of(TEXTS[name]))
    assert sorted(path for path in tree if not (ROOT / path).exists()) == []
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "sdxl_lora").glob("*/__init__.py")}
    assert sorted(packages - tree) == []


def anchors_of(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found = []
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = sum(anchor == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", anchor) is not None for anchor in found)
        found.append(f"{slug}-{count}" if count else slug)
    return found


@pytest.mark.parametrize("name", [*NAMES, "examples/shapes/README.md"])
def test_every_link_leads_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    broken = []
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
        if not path.exists() or ROOT not in [path, *path.parents]:
            broken.append(target)
        elif anchor and anchor not in anchors_of(path.read_text(encoding="utf-8")):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_every_page_is_linked_from_the_index():
    pages = {Path(name).name for name in NAMES if name.startswith("docs/")} - {"index.md"}
    assert sorted(page for page in pages if f"]({page})" not in TEXTS["docs/index.md"]) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_named_is_there(name):
    tops = "accelerate_configs|benchmarks|docs|examples|preprocess|sdxl_lora|tests|webui"
    named = re.findall(rf"`((?:{tops})/[\w./-]+\.\w+)`", TEXTS[name])
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_benchmark_has_its_line():
    scripts = {path.stem for path in (ROOT / "benchmarks").rglob("*.py")} - {"__init__"}
    assert sorted(name for name in scripts if f"| `{name}` |" not in TEXTS["benchmarks/README.md"]) == []


def test_the_page_of_settings_is_up_to_date():
    assert TEXTS["docs/settings.md"] == settings_page(), "run `python -m docs.generate_settings`"


@pytest.mark.parametrize("config_class", [TrainConfig, PreprocessConfig])
def test_the_page_of_settings_has_every_setting_once(config_class):
    listed = [setting.name for _, settings in grouped_settings(config_class) for setting in settings]
    assert listed == list(flat_fields(config_class))


def test_requirements_are_exact():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert line.startswith("-r ") or re.match(r"[A-Za-z0-9_-]+==[\w.]+( *[;#].*)?$", line), line


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_in_the_documentation_is_a_setting(name):
    settings = {setting for config in (TrainConfig, PreprocessConfig) for setting in flat_fields(config)}
    of_launcher = {"config_file", "num_processes", "module", "num_machines", "machine_rank", "main_process_ip"}
    of_launcher |= {"max_restarts", "quiet", "nodes", "gpus-per-node"}
    of_page = {"host", "port", "settings", "root_path"}
    of_tools = {"base", "to", "weight", "weights", "loras", "energy", "export", "step", "best"}
    of_select = {name for name in vars(parse(["run"])) if name != "run_dir"} | {"multi_gpu"}
    of_select |= {name for name in vars(parse_came_along(["run"])) if name != "run_dir"}
    of_benchmarks = {"kohya", "judge", "runs"}
    of_others = {"config", "help", "index-url", "no-deps", "logdir", "check", "dist", "no-loadscope-reorder"}
    of_others |= {"extra", "group", "dest", "no-index", "find-links", "rm", "detach"}
    of_others |= {"follow", "tag", "volume", "gpus", "platform"}
    known = settings | {f"no_{name}" for name in settings} | of_launcher | of_page | of_tools
    known |= of_select | of_benchmarks | of_others
    flags = set(re.findall(r"(?<![\w-])--([a-z][\w-]+)", TEXTS[name]))
    assert sorted(flags - known) == []
