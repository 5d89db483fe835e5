"""Taggers: a real ONNX model at tiny size, its numbers against numpy, its captions, and files that are none."""

import importlib.util
import shutil

import huggingface_hub
import numpy as np
import pytest

from preprocess.captions import tagger as module
from preprocess.captions.tagger import Tagger, check_tagger, is_tagger, pixels_of, tagger_content
from sdxl_lora.config.sections.preprocess import TaggerConfig
from sdxl_lora.errors import ConfigError
from tests.helpers.hub_server import Hub
from tests.helpers.preparing import noise, preprocess, report_of, rows_of
from tests.helpers.taggers import SIDE, TAGS, expected_probabilities, save_tiny_tagger

ALL = TaggerConfig(tag_threshold=1e-9, tag_character_threshold=1e-9)


@pytest.fixture
def model(tmp_path):
    save_tiny_tagger(tmp_path / "tagger")
    return tmp_path / "tagger"


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        noise(seed=seed).save(folder / f"{name}.png")
    return folder


def texts_of(output):
    return [row["text"] for row in rows_of(output)]


def test_its_probabilities_are_those_that_numpy_computes(tmp_path):
    weights, biases = save_tiny_tagger(tmp_path)
    tag = Tagger(str(tmp_path), TaggerConfig())
    images = [noise(SIDE, 24, 1), noise(16, SIDE, 2), noise(SIDE, SIDE, 3)]
    rows = tag.probabilities(np.stack([pixels_of(image, SIDE) for image in images]))
    expected = np.array([expected_probabilities(image, weights, biases) for image in images])
    assert np.abs(rows - expected).max() < 1e-5 and rows.std(1).min() > 0.1
    names = [name.replace("_", " ") if name != "^_^" else name for name, _ in TAGS]
    for text, row in zip(tag(images), expected, strict=True):
        order = [i for i in np.argsort(-row) if row[i] >= {0: 0.35, 4: 0.85, 9: 2}[TAGS[i][1]]]
        order.sort(key=lambda i: TAGS[i][1] != 4)
        assert text == ", ".join(names[i] for i in order)


def test_a_picture_of_any_size_lies_in_a_white_square_blue_first():
    pixels = pixels_of(noise(64, 16, 1), SIDE)
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.float32
    assert (pixels[:10] == 255).all() and (pixels[-10:] == 255).all() and pixels[14:18].mean() < 250
    assert (pixels_of(noise(SIDE, SIDE, 1), SIDE)[..., ::-1] == np.asarray(noise(SIDE, SIDE, 1))).all()


@pytest.mark.parametrize("images", ["n", 1, 4])
def test_texts_do_not_depend_on_how_many_images_go_at_once(tmp_path, images):
    save_tiny_tagger(tmp_path / "any")
    save_tiny_tagger(tmp_path / "this", images=images)
    several = [noise(seed=seed) for seed in range(7)]
    one_by_one = [Tagger(str(tmp_path / "any"), ALL)([image])[0] for image in several]
    tag = Tagger(str(tmp_path / "this"), ALL, batch_size=3)
    assert tag(several) == one_by_one and tag.batch_size == (3 if images == "n" else images)


def test_pictures_get_tags_once_and_anew_where_the_tagger_or_its_settings_change(model, raw, tmp_path):
    out, flags = tmp_path / "out", ["--trigger_word", "sks", "--caption_batch_size", 2, "--tag_threshold", 0.1]
    (raw / "b.txt").write_text("a person's words")

    def run(folder, *more):
        assert preprocess(raw, out, "--caption_model", folder, *flags, *more) == 0
        return report_of(out)["counts"]["new_captions"]

    assert run(model) == 2
    texts = texts_of(out)
    assert texts[1] == "sks, a person's words" and len(texts[0].split(", ")) > 2 and texts[0] != texts[2]
    assert run(model) == 0 and texts_of(out) == texts
    moved = model.rename(tmp_path / "moved")
    assert run(moved) == 0 and texts_of(out) == texts
    assert run(moved, "--tag_escape_parentheses", "--no_tag_spaces") == 2
    assert run(moved) == 0  # both are kept
    save_tiny_tagger(moved, seed=1)
    assert run(moved) == 2 and texts_of(out)[0] != texts[0]
    (moved / "selected_tags.csv").write_text((moved / "selected_tags.csv").read_text().replace("1girl", "1boy"))
    assert run(moved) == 2


def test_a_run_that_was_killed_goes_on_where_it_stood(model, raw, tmp_path, monkeypatch):
    flags = ["--caption_model", model, "--caption_batch_size", 1, "--tag_threshold", 0.1]
    seen = []

    def stop_at_third(self, pixels, probabilities=Tagger.probabilities):
        seen.append(len(pixels))
        if len(seen) == 4:  # the first is the check
            raise KeyboardInterrupt
        return probabilities(self, pixels)

    with monkeypatch.context() as stopped:
        stopped.setattr(Tagger, "probabilities", stop_at_third)
        assert preprocess(raw, tmp_path / "out", *flags) == 130
    assert preprocess(raw, tmp_path / "out", *flags) == 0
    assert report_of(tmp_path / "out")["counts"]["new_captions"] == 1
    assert preprocess(raw, tmp_path / "other", *flags) == 0
    assert texts_of(tmp_path / "out") == texts_of(tmp_path / "other")


def test_a_picture_without_a_likely_tag_is_kept_and_said(model, raw, tmp_path):
    flags = ["--caption_model", model, "--tag_threshold", 0.99999, "--tag_character_threshold", 0.99999]
    assert preprocess(raw, tmp_path / "out", *flags) == 0
    assert texts_of(tmp_path / "out") == ["", "", ""]
    said = [warning["message"] for warning in report_of(tmp_path / "out")["warnings"]]
    assert said.count("no tag is likely enough: lower tag_threshold, or write its caption") == 3


def damaged(folder):
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:300])


def without_category(folder):
    (folder / "selected_tags.csv").write_text("tag_id,name,count\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damaged, "cannot load model.onnx"),
        (without_category, "has no column"),
        (lambda folder: (folder / "model.onnx").unlink(), "is a tagger without model.onnx"),
        (lambda folder: (folder / "selected_tags.csv").unlink(), "is a tagger without selected_tags.csv"),
        (lambda folder: save_tiny_tagger(folder, outputs=5), "gives (1, 5) for 1 images"),
        (lambda folder: save_tiny_tagger(folder, last="Identity"), "they must be probabilities from 0 to 1"),
    ],
)  # fmt: skip
def test_files_that_are_no_tagger_are_refused_before_any_picture(model, raw, tmp_path, capsys, change, said):
    change(model)
    assert preprocess(raw, tmp_path / "out", "--caption_model", model) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and len(error) < 600
    assert not list((tmp_path / "out").rglob("*.png"))


def test_weights_without_an_onnx_file_say_what_to_load(model):
    (model / "model.onnx").rename(model / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model.safetensors alone would need timm.*wd-swinv2-tagger-v3"):
        check_tagger(str(model), TaggerConfig())


def test_without_onnxruntime_it_is_said_what_to_install(model, raw, tmp_path, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    assert preprocess(raw, tmp_path / "out", "--caption_model", model) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("onnxruntime ", "onnxruntime-gpu", "onnxruntime-directml"))


def test_settings_without_effect_are_refused(model, tiny_florence2, raw, tmp_path, capsys):
    for models, flags, said in (
        ([model], ["--caption_prompt", "what"], "caption_prompt has no effect on a tagger"),
        ([model], ["--caption_task", "<CAPTION>"], "caption_task has no effect on a tagger"),
        ([tiny_florence2], ["--tag_ratings"], "tag_ratings has no effect, since no caption_model is a tagger"),
        ([model], ["--tag_blacklist", "1gril"], "did you mean 1girl"),
        ([model], ["--ocr"], "ocr needs Florence-2"),
    ):
        assert preprocess(raw, tmp_path / "out", "--caption_model", *models, *flags) == 2
        assert said in capsys.readouterr().err


def test_what_is_a_tagger_is_seen_by_its_files(model, tiny_florence2, tmp_path):
    assert is_tagger(str(model)) and not is_tagger(str(tiny_florence2)) and not is_tagger("nobody/no-such-thing")
    name = tagger_content(str(model), TaggerConfig(), tmp_path)
    copy = shutil.copytree(model, tmp_path / "copy")
    assert tagger_content(str(copy), TaggerConfig(), tmp_path) == name
    (copy / "model.onnx.data").write_bytes(b"weights")
    assert tagger_content(str(copy), TaggerConfig(), tmp_path) != name


def test_a_tagger_of_the_hub_is_fetched_once_and_is_the_one_of_its_folder(model, raw, tmp_path, monkeypatch):
    server = Hub(tmp_path / "hub", "hf_token")
    shutil.copytree(model, tmp_path / "hub" / "somebody" / "wd-tiny")
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    flags = ["--tag_threshold", 0.1]
    assert preprocess(raw, tmp_path / "out", "--caption_model", "somebody/wd-tiny", *flags) == 0
    texts = texts_of(tmp_path / "out")
    server.close()
    assert preprocess(raw, tmp_path / "out", "--caption_model", model, *flags) == 0
    assert report_of(tmp_path / "out")["counts"]["new_captions"] == 0 and texts_of(tmp_path / "out") == texts
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    module._hub_file.cache_clear()
    assert tagger_content("somebody/wd-tiny", ALL, tmp_path) == tagger_content(str(model), ALL, tmp_path)
    with pytest.raises(ConfigError, match=r"without selected_tags.csv, or the Hub cannot be reached"):
        check_tagger("somebody/else", ALL)
