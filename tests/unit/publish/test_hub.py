"""Publishing with huggingface_hub's own client, to a Hub on this machine: what arrives, and what if it fails."""

import re

import huggingface_hub
import pytest
import yaml

from sdxl_lora.errors import ConfigError
from sdxl_lora.publish.hub import main
from sdxl_lora.run.events import read_events
from sdxl_lora.run.status import read_status
from tests.helpers.caches import nothing_is_cached
from tests.helpers.hub_server import Hub

TOKEN = "hf_" + "canary" * 5
SETTINGS = {
    "max_train_steps": 2, "validation_prompt": ("sks, a cat", "a dog"), "num_validation_images": 2, "ema_decay": 0.9,
    "validation_inference_steps": 1, "validation_split": 0.25, "output_name": "cat", "push_to_hub": True,
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub(tmp_path / "hub", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def arrived(hub):
    return {path.relative_to(hub.folder / "me" / "cat").as_posix(): path.read_bytes()
            for path in hub.folder.rglob("*") if path.is_file()}  # fmt: skip


def test_the_hub_gets_what_a_user_needs_and_the_cards_python_draws_with_it(train, hub, tiny_base, monkeypatch, capsys):
    run = train(**SETTINGS)
    assert [(request["name"], request["visibility"]) for request in hub.created] == [("cat", "private")]
    files = arrived(hub)
    images = {f"samples/step-000002-prompt-{prompt}-image-0.png" for prompt in (0, 1)} | {"samples/grid.png"}
    loras = {"cat.safetensors", "cat-best.safetensors", "pytorch_lora_weights.safetensors"}
    assert files.keys() == {"README.md", *loras, *images}
    assert all(files[name] == (run / name).read_bytes() for name in files)
    assert not [name for name, data in files.items() if TOKEN.encode() in data or str(run.parent).encode() in data]
    assert next(read_events(run / "events.jsonl", "published"))["files"] == [*sorted(files)]
    assert f"uploaded to {hub.endpoint}/me/cat" in capsys.readouterr().out

    card = files["README.md"].decode()
    header = yaml.safe_load(card.split("\n---\n")[0])
    assert [entry["output"]["url"] for entry in header["widget"]] == sorted(images - {"samples/grid.png"})
    assert "![prompts by steps](samples/grid.png)" in card
    assert "| rank | 4 |" in card and "| ema\\_decay | 0.9 |" in card and "huber" not in card
    python = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert 'pipe.load_lora_weights("me/cat", weight_name="cat.safetensors")' in python
    for theirs, ours in (
        ('"tiny-sdxl"', repr(str(tiny_base))), ('"me/cat"', repr(str(hub.folder / "me" / "cat"))), ('"cuda"', '"cpu"'),
        ("float16", "float32"), ("image = pipe(", "image = pipe(num_inference_steps=1, prompt="),
    ):  # fmt: skip
        assert theirs in python
        python = python.replace(theirs, ours)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    names = {}
    exec(python, names)
    assert names["pipe"].get_active_adapters() and names["image"].size == (64, 64)


def test_an_upload_that_fails_loses_nothing_and_says_how_to_try_again(train, hub, capsys):
    hub.refuse = "/commit/"
    run = train(**{**SETTINGS, "max_train_steps": 1})
    said = capsys.readouterr().err
    assert (
        "could not upload to me/cat: 403 Forbidden" in said and f"python -m sdxl_lora.publish.hub {run} me/cat" in said
    )
    hub.refuse = "/api/"
    train(**SETTINGS)
    said = capsys.readouterr().err
    assert "Going on; the upload is tried again at the end" in said, "a run that goes on is not kept from it"
    assert "could not upload to cat: " in said and f"try again with: python -m sdxl_lora.publish.hub {run} cat" in said
    status = read_status(run)
    assert (status["state"], status["exit_code"]) == ("done", 0) and (run / "cat.safetensors").exists()
    assert not arrived(hub) and not list(read_events(run / "events.jsonl", "published"))
    assert main([str(run), "me/cat"]) == 2, "it still refuses"
    hub.refuse = ""
    assert main([str(run), "me/cat"]) == 0
    assert "cat.safetensors" in arrived(hub)
    assert all(TOKEN.encode() not in path.read_bytes() for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "settings, token, refuse, words",
    [
        ({}, None, "", "push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN"),
        ({"hub_model_id": "a/b/c"}, TOKEN, "", "hub_model_id 'a/b/c'"),
        ({"hub_model_id": "me/c at"}, TOKEN, "", "hub_model_id 'me/c at'"),
        (
            {"hub_model_id": "you/cat"},
            TOKEN,
            "auth-check",
            "the Hub does not let us write to you/cat: .*(403|permissions)",
        ),
        ({"hub_model_id": "me/cat"}, "hf_wrong", "", "the Hub does not let us write to me/cat: .*(401|[Ii]nvalid)"),
        ({}, "hf_wrong", "", "the Hub does not answer"),
    ],
)
def test_who_cannot_upload_hears_of_it_before_any_work(
    train, hub, monkeypatch, tmp_path, settings, token, refuse, words
):
    hub.refuse = refuse
    if token is None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match=words):
        train(push_to_hub=True, output_name="cat", **settings)
    assert nothing_is_cached(tmp_path) and not arrived(hub)


def test_the_command_refuses_a_folder_that_is_no_finished_run(tmp_path, capsys):
    assert main([str(tmp_path), "me/cat"]) == 2
    assert "has no LoRA file" in capsys.readouterr().err


def test_an_id_without_push_to_hub_is_a_mistake(train_config):
    with pytest.raises(ConfigError, match="hub_model_id needs push_to_hub"):
        train_config(hub_model_id="me/cat")
