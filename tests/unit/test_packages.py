"""Installed packages that do not fit: one line with the command that mends it, by the program itself."""

import pytest

from sdxl_lora.packages import requirement_of
from tests.helpers.marks import slow
from tests.helpers.planted import plant_package, run_beside

TORCHVISION = ("torchvision", "0.20.0", "raise RuntimeError('operator torchvision::nms does not exist')")
FAILS = "raise ImportError('libcudart.so.12: cannot open shared object file')"
WRAPPED = (
    "try:\n    import torchvision\nexcept Exception as error:\n"
    "    raise ModuleNotFoundError('Could not import module PreTrainedModel. Are its requirements defined?') from error"
)
BITSANDBYTES = str(requirement_of("bitsandbytes").specifier)
UNFIT = {  # planted packages, what is run, what is said
    "torchvision": ([TORCHVISION], "import torchvision",
        "torchvision 0.20.0 does not fit torch 2.13.0{build} (operator torchvision::nms does not exist): "
        "pip uninstall torchvision; nothing here needs it"),
    "torchvision, imported by another that hides why": ([TORCHVISION, ("peft", "0.21.2", WRAPPED)], "import peft",
        "torchvision 0.20.0 does not fit torch 2.13.0{build} (operator torchvision::nms does not exist): "
        "pip uninstall torchvision; nothing here needs it"),
    "xformers": ([("xformers", "0.0.28", "import torch_of_then")], "import xformers",
        "xformers 0.0.28 does not fit torch 2.13.0{build} (No module named 'torch_of_then'): "
        "pip uninstall xformers; nothing here needs it"),
    "triton": ([("triton", "3.1.0", FAILS)], "import triton",
        "triton 3.1.0 cannot be imported (libcudart.so.12: cannot open shared object file): "
        "install torch again, as docs/install.md says, in an environment of its own"),
    "bitsandbytes of the right version": ([("bitsandbytes", BITSANDBYTES[2:], FAILS)], "import bitsandbytes",
        f"bitsandbytes {BITSANDBYTES[2:]} cannot be imported (libcudart.so.12: cannot open shared object file): "
        f"pip install --force-reinstall --no-deps bitsandbytes{BITSANDBYTES}"),
    "peft of another version": ([("peft", "0.10.0", "")], "from peft import LoraConfig",
        "peft 0.10.0 cannot be imported (cannot import name 'LoraConfig' from 'peft'"),
    "transformers of another version": ([("transformers", "4.40.0", "")], "import transformers.modeling_none",
        "transformers 4.40.0 cannot be imported (No module named 'transformers.modeling_none'): "
        "pip install -r requirements.txt, in an environment of its own, as docs/install.md says"),
    "one that is missing": ([], "import tyro_of_tomorrow",
        "tyro_of_tomorrow is missing: pip install -r requirements.txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_a_package_that_does_not_fit_is_named_with_its_remedy_in_one_line(tmp_path, case):
    planted, code, said = UNFIT[case]
    for package in planted:
        plant_package(tmp_path, *package)
    hook = "from sdxl_lora.packages import explain_failed_imports, installed_version; explain_failed_imports()"
    code, printed = run_beside(tmp_path, "-c", f"{hook}\n{code}")
    [line] = printed.splitlines()
    assert code == 2 and line.startswith("error: ")
    build = line.partition("torch 2.13.0")[2].partition(" ")[0]
    assert line.startswith("error: " + said.format(build=build))


@pytest.mark.parametrize(
    "code", ["import sdxl_lora.of_tomorrow", "from sdxl_lora.packages import nothing", "raise RuntimeError", "1 / 0"]
)
def test_a_bug_of_ours_is_shown_as_python_shows_it(tmp_path, code):
    hook = "from sdxl_lora.packages import explain_failed_imports; explain_failed_imports()"
    code, printed = run_beside(tmp_path, "-c", f"{hook}\n{code}")
    assert code == 1 and printed.startswith("Traceback")


def test_ctrl_c_during_an_import_blames_no_package(tmp_path):
    plant_package(tmp_path, "slow", "1.0", "raise KeyboardInterrupt")
    hook = "from sdxl_lora.packages import explain_failed_imports; explain_failed_imports()"
    code, printed = run_beside(tmp_path, "-c", f"{hook}\nimport slow")
    assert code != 2 and printed.startswith("Traceback") and printed.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    "program, package",
    [
        *slow((("train_sdxl_lora.py", "--train_data_dir", "pictures", "--output_dir", "{folder}/run"), "torchvision")),
        (("-m", "preprocess", "--input_dir", "{folder}", "--output_dir", "{folder}/data"), "imagehash"),
        (("-m", "webui", "--port", "0", "--settings", "{folder}/ui.yaml"), "gradio"),
        (("-m", "sdxl_lora.tools", "show", "{folder}/ui.yaml"), "torch"),
    ],
)
def test_every_program_says_it_so(tmp_path, program, package):
    plant_package(tmp_path / "site", package, "0.1", "raise RuntimeError('made for another torch')")
    (tmp_path / "ui.yaml").write_text(f"LORA_PROJECTS_DIR: {tmp_path}\n", encoding="utf-8")
    code, printed = run_beside(tmp_path / "site", *(argument.format(folder=tmp_path) for argument in program))
    assert code == 2 and "Traceback" not in printed
    [line] = printed.splitlines()
    assert line.lower().startswith(f"error: {package} 0.1 ") and "(made for another torch): " in line
    assert not (tmp_path / "run").exists() and not (tmp_path / "data").exists()
