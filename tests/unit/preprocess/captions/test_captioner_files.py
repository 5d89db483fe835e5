"""A captioner's files: whole or refused before any work, captions that belong to them, and captions cut off."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from preprocess.captions.captioner import CutOff, captioner, check_captioner
from preprocess.captions.captioner_files import check_layout, check_weights, content_of
from sdxl_lora.config.sections.preprocess import CaptionerConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.io.memo import NO_MEMO
from tests.helpers.preparing import noise, preprocess, report_of, rows_of


@pytest.fixture
def model(tiny_florence2, tmp_path):
    return shutil.copytree(tiny_florence2, tmp_path / "model")


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        noise(seed=seed).save(folder / f"{name}.png")
    return folder


def texts_of(output):
    return [row["text"] for row in rows_of(output)]


def saved(model, weights):
    save_file({name: tensor.clone() for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})


def test_weights_missing_left_over_or_of_another_shape_are_refused_before_any_picture(model, raw, tmp_path, capsys):
    good = load_file(model / "model.safetensors")
    first = next(iter(good))
    broken = {
        "missing: ": {f"base_model.model.{name}": tensor for name, tensor in good.items()},
        "missing: 144, such as model.vision_tower": {n: t for n, t in good.items() if "vision_tower" not in n},
        "not in the model: 1, such as q_proj.lora_A.weight": {
            **good, "q_proj.lora_A.weight": torch.ones(2, 2),
        },
        "with another shape: 1": {**good, first: good[first][:1]},
    }  # fmt: skip
    for said, weights in broken.items():
        saved(model, weights)
        assert preprocess(raw, tmp_path / "out", "--caption_model", model) == 2
        assert said in capsys.readouterr().err
        assert not list((tmp_path / "out").rglob("*.png"))
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="cannot load the captioner"):
        check_captioner(CaptionerConfig(str(model)))


def test_buffers_that_older_versions_saved_are_no_fault():
    nothing = {"missing_keys": set(), "mismatched_keys": set()}
    check_weights("x", "git", {**nothing, "unexpected_keys": {"embeddings.position_ids", "decoder.h.0.attn.bias"}})
    with pytest.raises(ConfigError, match=r"such as decoder.h.0.attn.c_attn.bias"):
        check_weights("x", "git", {**nothing, "unexpected_keys": {"decoder.h.0.attn.c_attn.bias"}})


def test_a_caption_belongs_to_the_captioners_content_and_not_to_its_path(model, raw, tmp_path):
    output, options = tmp_path / "out", ["--caption_max_new_tokens", 12]
    assert preprocess(raw, output, "--caption_model", model, *options) == 0
    first = texts_of(output)
    moved = model.rename(tmp_path / "moved")
    assert preprocess(raw, output, "--caption_model", moved, *options) == 0
    assert report_of(output)["counts"]["new_captions"] == 0 and texts_of(output) == first
    weights = load_file(moved / "model.safetensors")
    saved(moved, {name: tensor.flip(0) if tensor.dim() == 2 else tensor for name, tensor in weights.items()})
    assert preprocess(raw, output, "--caption_model", moved, *options) == 0
    assert report_of(output)["counts"]["new_captions"] == 2 and texts_of(output) != first


def test_every_file_that_makes_words_counts_as_content(model):
    names = {content_of(str(model), NO_MEMO)}
    for file in ("generation_config.json", "tokenizer.json", "config.json"):
        (model / file).write_text((model / file).read_text() + "\n")
        names.add(content_of(str(model), NO_MEMO))
    (model / "README.md").write_text("about it")
    assert len(names) == 4 and content_of(str(model), NO_MEMO) in names


def test_captions_kept_by_earlier_versions_count_until_the_captioner_changes(model, raw, tmp_path, monkeypatch):
    output, flags = tmp_path / "out", ["--caption_model", model, "--caption_max_new_tokens", 12]
    old_name = "preprocess.captions.captioner.content_name", lambda options, hidden: repr(options)  # as they were kept
    with monkeypatch.context() as earlier:
        earlier.setattr(*old_name)
        assert preprocess(raw, output, *flags) == 0
    assert preprocess(raw, output, *flags) == 0
    assert report_of(output)["counts"]["new_captions"] == 0
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "min_new_tokens": 2}))
    assert preprocess(raw, output, *flags) == 0
    assert report_of(output)["counts"]["new_captions"] == 2


def old_layout(model, text_type):
    """The folder as Microsoft's own code wrote it."""
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_florence2.Florence2Config"}
    text, vision = config["text_config"], config["vision_config"]
    text["model_type"] = text_type
    vision |= {"model_type": "davit", "dim_embed": vision.pop("embed_dim")}
    config["text_config"] = {key: value for key, value in text.items() if value is not None}
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("text_type", [None, "florence2_language"])
def test_florence_as_microsoft_published_it_is_told_what_to_load_instead(model, raw, tmp_path, capsys, text_type):
    old_layout(model, text_type)
    assert preprocess(raw, tmp_path / "out", "--caption_model", model) == 2
    said = capsys.readouterr().err
    assert "load florence-community/Florence-2-base" in said and len(said) < 500
    assert not (tmp_path / "out" / ".preprocess" / "pictures").exists()


def test_what_to_load_instead_is_of_the_same_size():
    vision = {"model_type": "davit", "dim_embed": [1]}
    for name, width, instead in (
        ("microsoft/Florence-2-large-ft", 1024, "Florence-2-large-ft,"),
        ("microsoft/Florence-2-base", 768, "Florence-2-base,"),
        ("somebody/my-tags", 1024, "Florence-2-large,"),
    ):
        config = {"model_type": "florence2", "vision_config": vision, "text_config": {"d_model": width}}
        with pytest.raises(ConfigError, match=f"load florence-community/{instead}"):
            check_layout(name, config)
    with pytest.raises(ConfigError, match="needs code from its own repository"):
        check_layout("x", {"model_type": "moondream1", "auto_map": {"AutoConfig": "a.B"}})


def test_old_weights_under_a_new_config_and_pickles_alone_are_told_what_to_load_instead(model):
    weights = load_file(model / "model.safetensors")
    old = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."}
    for new, name in old.items():
        weights = {key.replace(new, name): tensor for key, tensor in weights.items()}
    saved(model, weights)
    with pytest.raises(ConfigError, match="load florence-community/Florence-2-base"):
        check_captioner(CaptionerConfig(str(model)))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickles like pytorch_model.bin are not.*load one that has it"):
        check_captioner(CaptionerConfig(str(model)))


def test_captions_cut_off_are_named_again_on_every_run(model, raw, tmp_path, capsys):
    (raw / "b.txt").write_text("a person's words")
    for _ in range(2):  # the second time they come from the shelf
        assert preprocess(raw, tmp_path / "out", "--caption_model", model, "--caption_max_new_tokens", 6) == 0
        said = "caption cut off at caption_max_new_tokens 6: raise it"
        assert f"a.png: {said}" in capsys.readouterr().out
        assert {"source": "a.png", "message": said} in report_of(tmp_path / "out")["warnings"]
        assert not any(w["source"] == "b.png" and said in w["message"] for w in report_of(tmp_path / "out")["warnings"])


def test_a_caption_that_ends_by_itself_is_not_called_cut_off(tiny_blip, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_blip)
    bias, end = model.text_decoder.cls.predictions.decoder.bias, model.config.text_config.sep_token_id
    folder = shutil.copytree(tiny_blip, tmp_path / "blip")
    for added, ends in ((-100, False), (100, True)):
        with torch.no_grad():
            bias[end] = added
        model.save_pretrained(folder)
        with captioner(CaptionerConfig(str(folder), caption_prompt="a photo of", caption_max_new_tokens=6)) as caption:
            (text,) = caption([noise(seed=1)])
        assert isinstance(text, CutOff) is not ends and (text == "a photo of") is ends


def test_florence_that_ends_by_itself_is_not_called_cut_off(model):
    path = model / "generation_config.json"
    config = json.loads(path.read_text())
    soon = {"exponential_decay_length_penalty": [2, 1000.0], "no_repeat_ngram_size": 0}
    for changes, cut_off in (
        ({}, True),  # the end of text is forced at the limit
        ({"forced_eos_token_id": None}, True),
        (soon, False),
    ):
        path.write_text(json.dumps({**config, **changes}))
        with captioner(CaptionerConfig(str(model), caption_max_new_tokens=8)) as caption:
            texts = caption([noise(seed=0), noise(seed=1)])
        assert [isinstance(text, CutOff) for text in texts] == [cut_off] * 2
