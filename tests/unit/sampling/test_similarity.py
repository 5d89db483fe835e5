"""CLIP-I and DINO scores by real, tiny classes of transformers: algebra, by hand, and in a run."""

import math
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
)

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import read_events
from sdxl_lora.sampling.similarity import Similarity, check_similarity_model
from tests.helpers.caches import nothing_is_cached
from tests.helpers.runs import assert_equal_weights

CPU = torch.device("cpu")
SIZES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99, "intermediate_size": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a CLIP, a CLIP's vision half, a DINOv2, a ConvNeXt, and a BERT, all tiny and random."""
    torch.manual_seed(0)
    vision = {**SMALL, "intermediate_size": 64, "projection_dim": 16}
    text = {**TEXT, "projection_dim": 16}
    made = {
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)),
        "clip-vision": CLIPVisionModel(CLIPVisionConfig(**vision)),
        "dinov2": Dinov2Model(Dinov2Config(**SMALL)),
        "convnext": ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        "bert": BertModel(BertConfig(**TEXT)),
    }
    folder = tmp_path_factory.mktemp("vision")
    for name, model in made.items():
        model.save_pretrained(folder / name)
        if name != "bert":
            processor = BitImageProcessorPil if name == "dinov2" else CLIPImageProcessorPil
            processor(**SIZES).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def images(photographs):
    return [Image.open(path).convert("RGB") for path in sorted(photographs.iterdir())]


@pytest.mark.parametrize("name", ["clip", "clip-vision", "dinov2", "convnext"])
def test_the_same_is_one_and_all_else_is_less(models, images, name):
    similarity = Similarity(str(models / name))
    similarity.refer_to(images[:1], CPU)
    assert similarity.of(images[:1] * 3, CPU) == pytest.approx(1, abs=1e-5)
    inverted = similarity.of([ImageOps.invert(images[0])], CPU)
    others = [similarity.of([image], CPU) for image in images[1:]]
    assert all(-1 <= value < 0.9999 for value in [inverted, *others])
    assert len(set(others)) == 3, "it tells pictures apart"
    assert next(similarity.model.parameters()).device == CPU


def test_it_is_the_mean_cosine_of_all_pairs(models, images):
    similarity = Similarity(str(models / "dinov2"))
    model, processor = Dinov2Model.from_pretrained(models / "dinov2").eval(), BitImageProcessorPil(**SIZES)
    with torch.no_grad():
        embeddings = [model(**processor(images=[p], return_tensors="pt")).pooler_output[0].double() for p in images]
    cosines = [(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)).item() for a in embeddings[:2] for b in embeddings[2:]]
    similarity.refer_to(images[2:], CPU)
    assert similarity.of(images[:2], CPU) == pytest.approx(np.mean(cosines), abs=1e-5)
    many = images[:2] * 10  # more than are embedded at once
    assert similarity.of(many, CPU) == pytest.approx(np.mean(cosines), abs=1e-5)
    prompts = [SamplePrompt("sks, a cat"), SamplePrompt("a cat", is_without_trigger=True)]
    apart = similarity.of_samples(prompts, [images[:1], images[1:2]], CPU)
    assert apart["similarity"] == pytest.approx(np.mean(cosines[:2]), abs=1e-5)
    assert apart["similarity_without_trigger"] == pytest.approx(np.mean(cosines[2:]), abs=1e-5)


def test_a_run_reports_it_with_every_drawing_and_is_not_moved_by_it(train, models, captioned_photographs, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in captioned_photographs.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "README.md").write_text("---\ntrigger_word: sks\n---\n")
    settings = {
        "train_data_dir": str(data), "max_train_steps": 2, "validation_steps": 1, "num_validation_images": 1,
        "validation_prompt": ("sks, a cat",), "validation_inference_steps": 1, "validation_without_trigger": True,
        "validation_split": 0.25, "learning_rate": 1e-2,
    }  # fmt: skip
    plain = train(**settings, output_dir=str(tmp_path / "plain"))
    run = train(**settings, similarity_model=str(models / "clip"), output_dir=str(tmp_path / "measured"))
    events = list(read_events(run / "events.jsonl", "similarity"))
    assert [event["step"] for event in events] == [0, 1, 2]
    for event in events:
        assert -1 <= event["similarity"] <= 1 and event["similarity"] != event["similarity_without_trigger"]
    assert len({event["similarity"] for event in events}) == 3
    name = "pytorch_lora_weights.safetensors"
    assert_equal_weights(load_file(plain / name), load_file(run / name))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: path.mkdir(), "it is a folder without config.json and preprocessor_config.json"),
        (lambda path: path.write_text(""), "it is a file"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "without preprocessor_config.json"),
        (lambda path: os.symlink(os.devnull, path), "is a pipe or a device"),
    ],
)
def test_what_is_no_model_is_told_without_a_word_of_the_hub(tmp_path, make, words):
    make(tmp_path / "model")
    with pytest.raises(ConfigError) as raised:
        check_similarity_model(str(tmp_path / "model"))
    assert words in str(raised.value) and "huggingface.co" not in str(raised.value)


def test_a_hub_id_that_is_not_here_is_told_in_one_sentence():
    with pytest.raises(ConfigError, match="cannot be used: Can't load image processor for 'no/such-model' ") as raised:
        Similarity("no/such-model")
    assert "local directory" not in str(raised.value)


def test_what_cannot_measure_is_refused_before_any_work(train, models, tmp_path):
    settings = {"validation_prompt": ("a cat",)}
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (pickled / name).write_bytes((models / "dinov2" / name).read_bytes())
    torch.save(Dinov2Model.from_pretrained(models / "dinov2").state_dict(), pickled / "pytorch_model.bin")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoModel": "evil.Model"}}')
    (foreign / "preprocessor_config.json").write_bytes((pickled / "preprocessor_config.json").read_bytes())
    (foreign / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_file({"a": torch.zeros(1)}, foreign / "model.safetensors")
    for model in (models / "bert", pickled, foreign, "no/such-model"):
        with pytest.raises(ConfigError, match=r"similarity_model .* cannot be used: .*vision model of transformers"):
            train(**settings, similarity_model=str(model))
    with pytest.raises(ConfigError, match=r"similarity_model .*nowhere': no such folder here, and it is not a Hub id"):
        train(**settings, similarity_model=str(tmp_path / "nowhere"))
    assert not (tmp_path / "ran").exists() and nothing_is_cached(tmp_path)
    with pytest.raises(ConfigError, match="similarity_model needs a validation_prompt"):
        train(similarity_model=str(models / "dinov2"))
    with pytest.raises(ConfigError, match="dataset_streaming does not go with similarity_model"):
        train(**settings, similarity_model=str(models / "dinov2"), dataset_streaming=True)
