"""Commands that are refused before their first step: told with what to do, and nothing is there that was not before."""

import shutil

import pytest

from sdxl_lora.errors import CheckpointError, ConfigError, DataError
from sdxl_lora.run.session import Run

REFUSED = {  # settings, {folder} being the test's; which error; what is said
    "a base that is not there": (
        {"pretrained_model_name_or_path": "{folder}/none.safetensors"}, ConfigError, "no such base model"),
    "a base that is none": (
        {"pretrained_model_name_or_path": "{folder}/empty"}, ConfigError, "model_index.json"),
    "pictures that are not there": ({"train_data_dir": "{folder}/none"}, DataError, "no such folder: .*none"),
    "a folder without pictures": ({"train_data_dir": "{folder}/empty"}, DataError, "empty"),
    "a file of prompts that is not there": (
        {"validation_prompts_file": "{folder}/none.txt"}, ConfigError, "none.txt"),
    "a prompt with an option that is none": (
        {"validation_prompt": ("a cat --sheep 3",)}, ConfigError, "--sheep"),
    "a LoRA to begin with that is not there": (
        {"init_lora": "{folder}/none.safetensors"}, ConfigError, "init_lora.*none.safetensors"),
    "a LoRA to begin with that is none": (
        {"init_lora": "{folder}/empty.safetensors"}, ConfigError, "init_lora.*empty.safetensors"),
    "a name that no file can have": ({"output_name": "a/b"}, ConfigError, "--output_name"),
    "a folder for LoRAs that is not there": ({"loras_dir": "{folder}/none"}, ConfigError, "make it first"),
    "a model of likeness that is not there": (
        {"similarity_model": "{folder}/none"}, ConfigError, "similarity_model"),
}  # fmt: skip


@pytest.fixture
def places(tmp_path, train_config):
    train_config()  # leaves what is known of the base, see conftest
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.safetensors").write_bytes(b"")
    return tmp_path


def everything_in(folder):
    """Bytes and time of all files, and all folders; the lock's file is opened by every start."""
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    return {path: about for path, about in files.items() if path.name != ".lock"}, {
        path for path in folder.rglob("*") if path.is_dir()
    }


def settings_in(folder, settings):
    return {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in settings.items()}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_leaves_no_folder_of_a_run(train, places, case):
    settings, error, said = REFUSED[case]
    before = everything_in(places)
    with pytest.raises(error, match=said) as raised:
        train(output_dir=str(places / "runs" / "of today" / "cat"), **settings_in(places, settings))
    assert everything_in(places) == before
    assert raised.value.exit_code in (2, 3)


@pytest.mark.parametrize("end", ["done", "failed", "killed"])
def test_a_refused_command_leaves_a_run_as_it_was(train, places, monkeypatch, end):
    """By a base, by pictures, and by settings that are not those of the run: these before anything is loaded."""
    run = train(max_train_steps=1)
    if end == "failed":
        with pytest.raises(ZeroDivisionError), Run(run):
            raise ZeroDivisionError
    if end == "killed":
        status = (run / "status.json").read_text().replace('"done"', '"training"')
        (run / "status.json").write_text(status)
        (run / "status-rank-1.json").write_text(status)
        (run / "stop").touch()
    before = everything_in(places)
    for name in ("a base that is none", "pictures that are not there", "a folder for LoRAs that is not there"):
        settings, error, said = REFUSED[name]
        with pytest.raises(error, match=said):
            train(**settings_in(places, settings))
        assert everything_in(places) == before, name
    monkeypatch.setattr("train_sdxl_lora.prepare_data", lambda *_: pytest.fail("it is told before any work"))
    refused = [{"rank": 8}, {"seed": 5, "rank": 4, "snr_gamma": 5.0}, {"resume_from_checkpoint": None}]
    for settings in refused:
        with pytest.raises(CheckpointError, match=r"choose another --output_dir"):
            train(**settings)
        assert everything_in(places) == before, settings


def test_an_output_that_is_refused_is_left_alone(train, places):
    (places / "file").write_text("mine")
    before = everything_in(places)
    with pytest.raises(ConfigError, match="cannot write to"):
        train(output_dir=str(places / "file" / "run"))
    assert everything_in(places) == before
    with Run(places / "taken"):
        before = everything_in(places)
        with pytest.raises(ConfigError, match="is at work in"):
            train(output_dir=str(places / "taken"), rank=8)
        after = everything_in(places)
        assert after[0].keys() == before[0].keys() and after[1] == before[1]


def test_work_that_a_mended_command_goes_on_from_is_kept(train, places, monkeypatch):
    """A refusal after the caches are filled leaves them alone of all."""

    def refuse(*_):
        raise ConfigError("too late")

    with monkeypatch.context() as late:
        late.setattr("train_sdxl_lora.confirm_prediction", refuse)
        with pytest.raises(ConfigError, match="too late"):
            train(cache_dir=None)
    assert [path.name for path in (places / "run").iterdir()] == ["cache"]
    monkeypatch.setattr("sdxl_lora.cache.fill.load_vae", lambda *_: pytest.fail("the latents are there"))
    train(cache_dir=None, max_train_steps=1)
    shutil.rmtree(places / "run")
