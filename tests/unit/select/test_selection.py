"""The whole way on the tiny base: drawn once, measured, recommended; and what is refused before anything is drawn."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

import train_sdxl_lora
from examples.tiny_sdxl import tiny_tokenizer
from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.select import draw, scores
from sdxl_lora.select.__main__ import choose, config_of, main, parse
from tests.helpers.building import forget_accelerators
from tests.helpers.configs import flat_train_config

SETTINGS = {"max_train_steps": 4, "checkpointing_steps": 2, "learning_rate": 3e-2, "num_validation_images": 1}
SETTINGS |= {"resolution": 64, "rank": 4, "mixed_precision": "no", "report_to": "none", "save_precision": "fp32"}
SETTINGS |= {"validation_prompt": ("sks, a cat", "a dog"), "validation_inference_steps": 2, "lora_dropout": 0.1}
HOW = ["--strengths", "0.5", "1", "--images", "1", "--final_images", "0"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of a tiny random CLIP with both halves."""
    torch.manual_seed(0)
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("judges") / "clip"
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**small, **ends, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tiny_base, captioned_photographs, tmp_path_factory):
    """The folder of a run with checkpoints of steps 2 and 4 and the trigger word sks."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(captioned_photographs, folder / "data")
    (folder / "data" / "README.md").write_text("---\ntrigger_word: sks\n---\n")
    forget_accelerators()
    places = {"pretrained_model_name_or_path": str(tiny_base), "train_data_dir": str(folder / "data")}
    places |= {"output_dir": str(folder / "run"), "cache_dir": str(folder / "cache")}
    train_sdxl_lora.train(flat_train_config(**places, **SETTINGS))
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


def select(run, *flags):
    forget_accelerators()
    choose(parse([str(run), *HOW, *flags]))


def test_a_run_is_drawn_measured_and_one_of_its_checkpoints_is_recommended(run, clip, capsys, monkeypatch):
    select(run, "--similarity_model", clip, "--clip_model", clip)
    found = json.loads((run / "select" / "select.json").read_text())
    cells = [(cell["step"], cell["strength"]) for cell in found["cells"]]
    assert cells == [(0, 0), (2, 0.5), (2, 1), (4, 0.5), (4, 1)]
    assert [prompt["text"] for prompt in found["prompts"]] == ["sks, a cat", "a cat", "a dog"]
    images = sorted((run / "select" / "images").glob("*.png"))
    assert len(images) == 5 * 3
    assert (run / "select" / "table.txt").read_text() in capsys.readouterr().out
    assert Image.open(run / "select" / "grid.png").width > 500

    # At strength 1 an image is the training's own sample of that step.
    own = np.asarray(Image.open(run / "samples" / "step-000004-prompt-0-image-0.png"), int)
    ours = run / "select" / "images" / "step-000004-strength-1-prompt-0-image-0.png"
    assert np.abs(own - np.asarray(Image.open(ours), int)).max() <= 1
    half = np.asarray(Image.open(str(ours).replace("strength-1", "strength-0.5")), int)
    base = np.asarray(Image.open(run / "select" / "images" / "step-000000-strength-0-prompt-0-image-0.png"), int)
    assert np.abs(half - base).mean() > 0 and np.abs(half - own).mean() > 0

    # The same command again draws what is missing, and that alone.
    content, drawn = ours.read_bytes(), []
    ours.unlink()
    images[0].write_bytes(images[0].read_bytes()[:-30])
    monkeypatch.setattr(draw, "write_whole", lambda path, data: (drawn.append(path), path.write_bytes(data)))
    select(run, "--similarity_model", clip, "--clip_model", clip)
    assert drawn == [images[0], ours] and ours.read_bytes() == content
    assert json.loads((run / "select" / "select.json").read_text()) == found
    select(run, "--similarity_model", clip)
    assert len(drawn) == 2, "another way to measure draws nothing"
    assert "not measured: prompt lost: no CLIP model was given" in capsys.readouterr().out


def test_the_best_are_drawn_again_with_more_images_and_alone_recommended(run, clip, monkeypatch, capsys):
    monkeypatch.setattr(scores, "FINALISTS", 2)
    monkeypatch.setattr(scores, "LEAST_SPAN", -1.0)  # to a random CLIP all images are as similar
    flags = ("--similarity_model", clip, "--final_images", "3")
    select(run, *flags)
    assert "the 2 best, checkpoint-" in capsys.readouterr().err
    found = json.loads((run / "select" / "select.json").read_text())
    finalists = [cell for cell in found["cells"] if cell["images_per_prompt"] == 3 and cell["step"]]
    others = [cell for cell in found["cells"] if cell["images_per_prompt"] == 1]
    assert (len(finalists), len(others), found["cells"][0]["images_per_prompt"]) == (2, 2, 3)
    images = sorted((run / "select" / "images").glob("*.png"))
    assert len(images) == 5 * 3 + (2 + 1) * 2 * 3
    best = max(finalists, key=lambda cell: cell["score"])
    chosen = found["recommended"]
    assert chosen is None or (chosen["step"], chosen["strength"]) in [(c["step"], c["strength"]) for c in finalists]
    assert (chosen is None) == (best["score"] <= 0)

    # Broken off in the second round, the same command draws what is missing, and that alone.
    lost, drawn = [path for path in images if path.stem.endswith("image-2")][::4], []
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    monkeypatch.setattr(draw, "write_whole", lambda path, data: (drawn.append(path), path.write_bytes(data)))
    select(run, *flags)
    assert sorted(drawn) == lost and [path.read_bytes() for path in lost] == before
    assert json.loads((run / "select" / "select.json").read_text()) == found
    with pytest.raises(ConfigError, match="--final_images is -1, it must be at least 0"):
        select(run, *flags[:2], "--final_images", "-1")


def test_the_recommended_strength_is_in_the_file_and_on_the_card(run, clip, monkeypatch):
    from sdxl_lora.select import selection
    from sdxl_lora.select.choice import Cell
    from sdxl_lora.select.scores import Recommendation

    found = Recommendation(Cell(0.5, 2), "checkpoint-2 at strength 0.5: it was asked for")
    monkeypatch.setattr(selection, "recommend", lambda scores: found)
    before = (run / "README.md").read_text()
    few = ("--similarity_model", clip, "--steps", "2", "--strengths", "0.5")
    for _ in range(2):
        select(run, *few)
        (path,) = run.glob("*-recommended.safetensors")
        file = read_lora(path)
        assert file.metadata["recommended_strength"] == "0.5" and "0.5" in file.metadata["modelspec.usage_hint"]
        source = read_lora(run / "checkpoint-2" / f"{config_of(run).lora_name}.safetensors")
        assert file.metadata["sshs_model_hash"] == source.metadata["sshs_model_hash"]
        card = (run / "README.md").read_text()
        assert card.startswith(before.rstrip("\n")) and card.count("## Recommended strength") == 1
        assert f"<lora:{path.stem}:0.5>" in card and "it was asked for" in card

    monkeypatch.setattr(selection, "recommend", lambda scores: Recommendation(None, "nothing is recommended"))
    select(run, *few)
    assert (run / "README.md").read_text() == before


def test_without_a_similarity_model_it_says_so_and_draws_on_request_alone(run, capsys):
    with pytest.raises(ConfigError, match=r"given no similarity_model.*--similarity_model none"):
        select(run)
    assert not (run / "select").exists(), "refused before anything is drawn"
    select(run, "--similarity_model", "none", "--steps", "4", "--strengths", "1", "--final_images", "8")
    out = capsys.readouterr()
    assert "best" not in out.err and len(list((run / "select" / "images").iterdir())) == 2 * 3, "one round"
    said = out.out
    assert "nothing is recommended: what was learned could not be measured" in said
    assert "not measured: learned, leak, likeness and variety: no similarity model was given" in said
    found = json.loads((run / "select" / "select.json").read_text())
    assert found["recommended"] is None and all(cell["score"] is None for cell in found["cells"])
    assert found["cells"][1]["nearest"]["training_image"].endswith((".png", ".jpg"))
    assert not list(run.glob("*-recommended.safetensors"))


def test_what_cannot_be_compared_is_named(run, clip, capsys):
    damaged = run / "checkpoint-2" / f"{config_of(run).lora_name}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"checkpoint-2 cannot be used: .* bytes, it had"):
        select(run, "--similarity_model", clip, "--steps", "2")
    with pytest.raises(CheckpointError, match="no checkpoint of step 3; there are 2, 4"):
        select(run, "--similarity_model", clip, "--steps", "3")
    with pytest.raises(ConfigError, match="--strengths is 0: give numbers above 0"):
        select(run, "--similarity_model", clip, "--strengths", "0")
    with pytest.raises(ConfigError, match="clip_model 'a/b/c': no such folder here"):
        select(run, "--similarity_model", clip, "--clip_model", "a/b/c")
    CLIPModel.from_pretrained(clip).vision_model.save_pretrained(run / "vision")
    shutil.copy(f"{clip}/preprocessor_config.json", run / "vision")
    with pytest.raises(ConfigError, match=r"clip_model .* does not read texts: it must be a CLIP"):
        select(run, "--similarity_model", clip, "--clip_model", str(run / "vision"))
    select(run, "--similarity_model", clip, "--strengths", "1")
    assert "checkpoint-2 is left out: " in capsys.readouterr().out
    found = json.loads((run / "select" / "select.json").read_text())
    assert [cell["step"] for cell in found["cells"]] == [0, 4] and "checkpoint-2" in found["left_out"][0]

    (run / "checkpoint-4" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact: checkpoint-2 .*; checkpoint-4 "):
        select(run, "--similarity_model", clip)


def test_a_folder_that_is_no_run_or_has_no_checkpoints_is_refused_in_a_line(tmp_path, train_config, capsys):
    from sdxl_lora.config.cli import to_yaml

    assert main([str(tmp_path / "nowhere")]) == 2
    assert "holds no config.yaml: name the output_dir of a training" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(train_config()))
    forget_accelerators()
    assert main([str(tmp_path / "run")]) == 4
    assert "holds no checkpoints: name the output_dir of a training" in capsys.readouterr().err
