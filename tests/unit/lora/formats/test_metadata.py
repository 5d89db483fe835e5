"""Metadata of a LoRA file: what it states, and what it must not reveal."""

import json

import pytest
from safetensors import safe_open

from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.metadata import lora_metadata, public_name, usage_lines
from tests.helpers.adapters import tiny_with_lora


def test_metadata_says_what_clients_read_and_nothing_private(tmp_path):
    from datetime import datetime, timezone

    metadata = lora_metadata(
        "cat",
        started_at=datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc),
        finished_at=datetime(2026, 1, 2, 4, 4, tzinfo=timezone.utc),
        trigger_phrase="sks",
        resolution=(1024, 768),
        base_model="/home/someone/models/sdxl.safetensors",
        base_model_sha256="ab" * 32,
        epochs=3,
        steps=120,
        seed=0,
        images=12,
        tag_frequency={"sks": 12, "a cat": 3},
        thumbnail_jpeg=b"\xff\xd8\xff\xe0rest",
        prediction_type="v_prediction",
    )
    _, models = tiny_with_lora(4, 2, components=("unet",))
    kohya, _ = write_lora_files(tmp_path, "cat", models, metadata=metadata)
    with safe_open(kohya, "pt") as file:
        read = file.metadata()
    expected = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_output_name": "cat",
        "ss_sd_model_name": "sdxl.safetensors",
        "ss_seed": "0",
        "ss_steps": "120",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.trigger_phrase": "sks",
        "modelspec.resolution": "1024x768",
        "modelspec.prediction_type": "v",
        "modelspec.date": "2026-01-02T04:04:00+00:00",
    }
    assert expected.items() <= read.items()
    assert json.loads(read["ss_tag_frequency"]) == {"images": {"sks": 12, "a cat": 3}}
    assert read["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert "someone" not in str(read)

    import hashlib

    content = kohya.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert read["sshs_model_hash"] == hashlib.sha256(content[start:]).hexdigest()


def test_metadata_leaves_out_what_is_not_known():
    known = lora_metadata("cat", seed=0, images=0)
    assert known["ss_seed"] == "0"
    assert not {"ss_steps", "ss_dataset_dirs", "ss_tag_frequency", "modelspec.thumbnail"} & set(known)
    assert "None" not in known.values()


def test_metadata_refuses_what_clients_would_choke_on():
    with pytest.raises(ValueError, match="must be one of epsilon, v_prediction, flow"):
        lora_metadata("cat", prediction_type="sample")
    with pytest.raises(ValueError, match="must be a JPEG of at most 1 MB"):
        lora_metadata("cat", thumbnail_jpeg=b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("/home/me/models/juggernaut.safetensors", "juggernaut.safetensors"),
        ("C:\\Users\\me\\sdxl", "sdxl"),
        ("./models/tiny/", "tiny"),
        ("", ""),
    ],
)
def test_a_bases_name_never_tells_a_path(given, public):
    assert public_name(given) == public


def test_usage_lines_carry_the_trigger_word_once():
    python, prompt = usage_lines("cat", "sks", "sks, a cat on a chair")
    assert prompt == "sks, a cat on a chair <lora:cat:1>"
    assert 'load_lora_weights("cat.safetensors")' in python and python.count("sks") == 1
    assert usage_lines("cat", "sks")[1] == "sks, a photo <lora:cat:1>"
    compile(usage_lines("cat", "it's", 'a "b"')[0], "line", "exec")


def test_of_a_flow_it_says_what_a_client_cannot_see():
    metadata = lora_metadata("cat", prediction_type="flow", flow_shift=3.0)
    assert metadata["modelspec.prediction_type"] == "flow"
    assert metadata["modelspec.usage_hint"].endswith("in ComfyUI with the node ModelSamplingSD3 and shift 3")
    assert "modelspec.usage_hint" not in lora_metadata("cat")
