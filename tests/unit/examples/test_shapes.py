"""The shapes world, its scorer and its trained base."""

import io
import random

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image, ImageFilter

from examples.shapes import stage
from examples.shapes.concepts import CONCEPTS, concept_scenes, draw_object, draw_style, write_concept
from examples.shapes.learning import write_images
from examples.shapes.models import build_tokenizer
from examples.shapes.pool import FRAMES, conditioned_scene, odd_scene
from examples.shapes.quality import BASE, base_quality, load_base
from examples.shapes.retrain import save_beside
from examples.shapes.scorer import read
from examples.shapes.world import BACKGROUNDS, COLOURS, SHAPES, caption, combinations, draw, random_scene
from sdxl_lora.diffusion.flow import FlowSampler
from sdxl_lora.models.loading import Base, load_schedulers
from tests.helpers.marks import slow

SOFT = {
    "drawn": lambda image, rng: image,
    "blurred": lambda image, rng: image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1))),
    "noisy": lambda image, rng: _noisy(image, rng),
    "jpeg": lambda image, rng: _jpeg(image, quality=rng.randint(70, 90)),
}


def _noisy(image, rng):
    noise = np.random.default_rng(rng.randint(0, 10**6)).normal(0, 10, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype("uint8"))


def _jpeg(image, quality):
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality, subsampling=0)
    return Image.open(packed).convert("RGB")


def test_same_seed_draws_the_same_scenes_and_captions():
    def drawn(seed):
        rng = random.Random(seed)
        scenes = [random_scene(rng) for _ in range(20)]
        return [(draw(scene).tobytes(), caption(scene, rng)) for scene in scenes]

    assert drawn(3) == drawn(3) != drawn(4)


def test_a_scene_lies_inside_its_frame_and_never_hides_on_its_own_colour():
    rng = random.Random(0)
    for width, height in FRAMES:
        for _ in range(200):
            scene = random_scene(rng, width, height)
            assert scene.colour != scene.background
            assert scene.radius < scene.centre[0] < width - scene.radius
            assert scene.radius < scene.centre[1] < height - scene.radius
    assert len(set(combinations())) == len(SHAPES) * (len(COLOURS) * len(BACKGROUNDS) - 2) == 140


def test_a_frame_too_small_for_any_shape_is_refused():
    with pytest.raises(ValueError, match="at least 32x32"):
        random_scene(random.Random(0), 64, 24)


def test_captions_name_colour_and_background():
    rng = random.Random(1)
    for _ in range(300):
        scene = random_scene(rng)
        text = caption(scene, rng)
        assert scene.colour in text and scene.background in text and " ," not in text


def test_a_crop_of_a_conditioned_scene_starts_inside_the_resized_picture():
    rng = random.Random(2)
    for _ in range(200):
        _, image, (original_height, original_width, y, x) = conditioned_scene(rng, 80, 48)
        assert image.size == (80, 48)
        scale = max(original_height / (48 + y), original_width / (80 + x))
        assert scale > 0.35 and 0 <= y <= 16 and 0 <= x <= 16


@pytest.mark.parametrize("kind", ["noisy", *slow(*SOFT)])
def test_scorer_reads_known_shapes(kind):
    rng = random.Random(f"known {kind}")
    right = []
    for index in range(140):
        width, height = FRAMES[index % len(FRAMES)]
        scene = random_scene(rng, width, height, combinations()[index])
        reading = read(SOFT[kind](draw(scene, width, height), rng))
        right.append(reading.shows(scene.shape, scene.colour, scene.background))
        assert not reading.is_object()
    assert np.mean(right) >= 0.99


@pytest.mark.parametrize("kind", ["noisy", *slow(*SOFT)])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_scorer_reads_concepts(concept, kind):
    rng = random.Random(f"{concept} {kind}")
    right = []
    for scene in concept_scenes(concept, 60, seed=9):
        image = draw_object(scene) if concept == "object" else draw_style(scene)
        reading = read(SOFT[kind](image, rng))
        named = (reading.colour, reading.background) == (scene.colour, scene.background)
        shown = reading.is_object() if concept == "object" else reading.is_style() and reading.shape == scene.shape
        right.append(named and shown)
        assert not reading.shows(scene.shape, scene.colour, scene.background)
    assert np.mean(right) >= 0.99


def test_shapes_without_a_name_are_not_the_object_concept():
    rng = random.Random(6)
    scenes = [odd_scene(rng, 64, 64) for _ in range(150)]
    assert np.mean([read(image).is_object() for _, image, _ in scenes]) <= 0.02  # 4 of 1000 when measured
    assert all(scene.colour in caption(scene, rng) and "odd" not in caption(scene, rng) for scene, _, _ in scenes)


def test_scorer_reads_nothing_into_flat_pictures_and_noise():
    flat = read(Image.new("RGB", (64, 64), BACKGROUNDS["gray"]))
    assert (flat.shape, flat.colour, flat.background) == ("none", "none", "gray")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype("uint8")
    assert read(Image.fromarray(noise)).shape == "none"


def test_scorer_reads_nothing_into_a_faint_patch_beside_a_strong_spot():
    image = np.full((64, 64, 3), 250, np.uint8)
    image[20:44, 10:34], image[4:12, 50:58] = 190, (200, 30, 30)
    reading = read(image)
    assert (reading.shape, reading.colour, reading.background) == ("none", "none", "white")


@pytest.mark.parametrize("bad", [np.zeros((64, 64)), np.zeros((16, 64, 3)), np.zeros((64, 64, 4))])
def test_scorer_refuses_what_is_no_rgb_picture(bad):
    with pytest.raises(ValueError, match="Expected an RGB image"):
        read(bad)


def test_concept_folder_has_a_caption_beside_every_picture(tmp_path):
    for concept in CONCEPTS:
        paths = write_concept(tmp_path / concept, concept, count=12)
        assert len(paths) == 12
        for path in paths:
            words = path.with_suffix(".txt").read_text().split()
            assert read(Image.open(path)).colour in words and "star" not in words
    again = write_concept(tmp_path / "again", "object", count=12)
    first = sorted((tmp_path / "object").glob("*.png"))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]


def test_class_pictures_of_a_style_show_its_combinations_as_often_as_its_own_do(tmp_path):
    write_images(tmp_path, "style", repeats=2, class_images=3)
    captions = [path.read_text() for path in (tmp_path / "class").glob("*.txt")]
    style = [path.read_text() for path in (tmp_path / "raw" / "2_style").glob("*.txt")]
    assert len(style) == 20 and len(captions) == 3 + 2 * 20
    assert all(captions.count(text) >= 2 for text in style)
    assert not any(read(Image.open(path)).hatched for path in (tmp_path / "class").glob("*.png"))


def test_unknown_concept_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of object, style"):
        write_concept(tmp_path, "hat")
    with pytest.raises(ValueError, match="at least one"):
        write_concept(tmp_path, "object", count=0)


def test_tokenizer_has_the_world_as_single_tokens_and_any_text_in_bytes():
    tokenizer = build_tokenizer()
    words = ["a", "red", "circle", "on", "the", "left", "in", "front", "of", "an", "orange", "background"]
    assert tokenizer.tokenize(" ".join(words)) == [f"{word}</w>" for word in words]
    unknown = tokenizer("zörp, Sks 12").input_ids
    assert tokenizer.unk_token_id not in unknown[1:-1] and len(unknown) > 6
    assert tokenizer("x " * 100, truncation=True, padding="max_length").input_ids[-1] == tokenizer.eos_token_id


def test_killed_stage_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "STATE_EVERY_SECONDS", 0)

    def trained(folder, killed_at=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 4)

        def loss_at(step):
            if step == killed_at:
                raise KeyboardInterrupt
            chance = torch.Generator().manual_seed(step)
            return (module(torch.randn(8, 4, generator=chance)) - 1).square().mean()

        folder.mkdir(exist_ok=True)
        stage.run_stage("toy", module, loss_at, steps=20, peak_lr=0.1, work_dir=folder)
        return module.weight

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", killed_at=11)
    assert torch.equal(trained(tmp_path / "parts"), whole)


def test_stage_refuses_a_loss_that_is_not_finite(tmp_path):
    module = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match="step 1; lower the learning rate"):
        stage.run_stage("toy", module, lambda step: module.weight.sum() * float("nan"), 5, 0.1, tmp_path)


def test_base_draws_a_sample_of_the_combinations():
    quality = base_quality(load_base(), combinations()[3::7])
    assert quality["right"] >= 0.85, quality  # 20 prompts: 90 % less one picture
    assert quality["object"] <= 0.05 and quality["style"] <= 0.05, quality


def test_base_parts_load_in_one_dtype_and_are_small():
    pipeline = load_base()
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet)
    assert {part.dtype for part in parts} == {torch.float32}
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 15e6


@pytest.mark.slow
def test_base_draws_all_combinations_at_every_frame_size():
    pipeline = load_base()
    for width, height in ((64, 64), (80, 48), (48, 80)):
        quality = base_quality(pipeline, combinations(), seed=1000, width=width, height=height)
        assert quality["right"] >= 0.9, (width, height, quality)
        assert quality["object"] <= 0.05 and quality["style"] <= 0.05, (width, height, quality)


def test_a_retrained_unet_makes_a_base_with_a_scheduler_of_its_own(tmp_path):
    pipeline = load_base()
    save_beside(BASE, pipeline.unet, FlowMatchEulerDiscreteScheduler(shift=2.0), tmp_path / "flow")
    scheduler = load_base(tmp_path / "flow").scheduler
    assert isinstance(scheduler, FlowSampler) and scheduler.config.shift == 2
    assert load_schedulers(Base(str(tmp_path / "flow")))[0].config.prediction_type == "flow"
