"""Samples: what each prompt asks for is what is drawn, drawing moves nothing, and the grid shows it."""

import random

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import read_events
from sdxl_lora.sampling.generate import (
    are_drawn,
    generate_image,
    generate_images,
    read_samples,
    sample_path,
    spread,
    write_grid,
)
from sdxl_lora.sampling.grid import LABEL_WIDTH, image_grid
from sdxl_lora.training.samples import guidance_rescale_of
from tests.helpers.caches import nothing_is_cached
from tests.helpers.runs import assert_equal_weights, weights_of


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    return StableDiffusionXLPipeline.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def read(pipeline):
    """Embeddings of a text, as a cache gives them."""

    def embeddings(text):
        embeds, _, pooled, _ = pipeline.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds[0], "pooled_embeds": pooled[0]}

    return embeddings


def test_each_prompt_is_drawn_by_its_own_options_as_diffusers_draws_it(pipeline, read, tmp_path):
    prompts = [
        SamplePrompt("a cat", "dark", 64, 32, 7, 3.0, 3),
        SamplePrompt("a dog", "", 32, 64, 2**40, 1.0, 2),
    ]
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    arguments = pipeline.unet, pipeline.vae, scheduler, prompts, read, 2, 0.0, tmp_path, 5
    for rank in (0, 1):
        generate_images(*arguments, rank, 2)
    for prompt, drawn in zip(prompts, read_samples(tmp_path, 5, 2, 2), strict=True):
        for repeat, image in enumerate(drawn):
            theirs = pipeline(
                prompt.text, negative_prompt=prompt.negative, width=prompt.width, height=prompt.height,
                guidance_scale=prompt.guidance_scale, num_inference_steps=prompt.steps,
                generator=torch.Generator().manual_seed(prompt.seed + repeat),
            ).images[0]  # fmt: skip
            assert image.size == (prompt.width, prompt.height)
            assert np.abs(np.asarray(image, int) - np.asarray(theirs, int)).max() <= 1
    about = Image.open(sample_path(tmp_path, 5, 0, 1)).text["parameters"]
    assert about == "a cat\nNegative prompt: dark\nSteps: 3, Sampler: Euler, CFG scale: 3, Seed: 8, Size: 64x32"


def test_guidance_rescale_is_the_papers_formula(pipeline, read):
    """arXiv:2305.08891, equations 14 to 16, by hand: what reaches the scheduler in the first step."""
    given = []

    class Watched(EulerDiscreteScheduler):
        def step(self, model_output, timestep, sample, **options):
            given.append((model_output, timestep, self.scale_model_input(sample, timestep)))
            return super().step(model_output, timestep, sample, **options)

    scheduler = Watched.from_config(pipeline.scheduler.config)
    generate_image(pipeline.unet, pipeline.vae, scheduler, read("a cat"), read("dark"), (64, 64), 1, 75.0, 0, 0.7)
    rescaled, timestep, latents = given[0]
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64.0]])
    with torch.no_grad():
        unguided, guiding = (
            pipeline.unet(
                latents, timestep, encoder_hidden_states=read(text)["prompt_embeds"][None],
                added_cond_kwargs={"text_embeds": read(text)["pooled_embeds"][None], "time_ids": sizes},
            ).sample
            for text in ("dark", "a cat")
        )  # fmt: skip
    guided = unguided + 75 * (guiding - unguided)
    by_hand = 0.7 * guided * guiding.std() / guided.std() + 0.3 * guided
    torch.testing.assert_close(rescaled, by_hand, atol=1e-4, rtol=1e-4)
    assert rescaled.std() < 0.95 * guided.std(), "there is something to rescale"


def test_drawing_takes_nothing_from_any_random_state(pipeline, read, tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    prompt = SamplePrompt("a cat", "", 64, 64, 0, 5.0, 2)
    generate_images(pipeline.unet, pipeline.vae, pipeline.scheduler, [prompt], read, 1, 0.0, tmp_path, 0)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def filled(folder, step, prompt_number, prompt, color, repeat=0):
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_itxt("parameters", prompt.describe(repeat))
    image = Image.new("RGB", (prompt.width, prompt.height), color)
    image.save(sample_path(folder, step, prompt_number, repeat), pnginfo=about)


def test_the_grid_has_a_row_per_prompt_and_a_column_per_step(tmp_path):
    first, second = SamplePrompt("a cat", "", 64, 64, 0, 5.0, 2), SamplePrompt("a dog", "", 128, 64, 0, 5.0, 2)
    colors = {(0, 0): "red", (10, 0): "green", (0, 1): "blue", (10, 1): "yellow"}
    for (step, number), color in colors.items():
        filled(tmp_path, step, number, (first, second)[number], color)
    filled(tmp_path, 20, 0, first, "black")  # of a later step, as a run started anew finds it
    grid = Image.open(write_grid(tmp_path, 10, [first, second], 1)).convert("RGB")
    assert grid.width == LABEL_WIDTH + 2 * (192 + 10) + 2 * 20
    places = {(step, number): (LABEL_WIDTH + 20 + column * 222 + 30, 40 + number * 202 + 30)
              for column, step in enumerate((0, 10)) for number in (0, 1)}  # fmt: skip
    for place, color in colors.items():
        assert grid.getpixel(places[place]) == Image.new("RGB", (1, 1), color).getpixel((0, 0)), place

    changed = SamplePrompt("a cat", "", 64, 64, 1, 5.0, 2)  # another seed: the older picture is no longer of its row
    filled(tmp_path, 10, 0, changed, "green")
    grid = Image.open(write_grid(tmp_path, 10, [changed, second], 1)).convert("RGB")
    assert grid.getpixel(places[(0, 0)]) == (255, 255, 255) != grid.getpixel(places[(10, 0)])


DAMAGE = {
    "empty file": lambda path: path.write_bytes(b""),
    "truncated PNG": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "not an image": lambda path: path.write_bytes(b"\0" * 500),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "not a PNG": lambda path: Image.new("RGB", (64, 64)).save(path, format="JPEG"),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_sample_costs_its_place_in_the_grid_and_is_named(tmp_path, words):
    prompt = SamplePrompt("a cat", "", 64, 64, 0, 5.0, 2)
    for step, color in ((0, "red"), (10, "green")):
        filled(tmp_path, step, 0, prompt, color)
    DAMAGE[words](sample_path(tmp_path, 0, 0, 0))
    said = []
    grid = Image.open(write_grid(tmp_path, 10, [prompt], 1, said.append)).convert("RGB")
    assert grid.getpixel((LABEL_WIDTH + 50, 70)) == (255, 255, 255) != grid.getpixel((LABEL_WIDTH + 272, 70))
    assert len(said) == 1 and "step-000000-prompt-0-image-0.png" in said[0] and words in said[0]
    assert not are_drawn(tmp_path, 0, [prompt], 1) and are_drawn(tmp_path, 10, [prompt], 1)
    assert read_samples(tmp_path, 0, 1, 1) == [[]]


def test_a_grid_of_many_steps_shows_some_of_them():
    assert spread([0, 1, 2], 8) == [0, 1, 2]
    chosen = spread(list(range(0, 1000, 10)), 8)
    assert len(chosen) == 8 and chosen[0] == 0 and chosen[-1] == 990
    gaps = np.diff(chosen)
    assert gaps.max() - gaps.min() <= 10


def test_a_sheet_with_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="Expected 1 rows of 2 images"):
        image_grid([("a", 2)], ["one"], [[None]])


@pytest.fixture
def with_trigger(captioned_photographs, tmp_path):
    """The photographs with a card that names the trigger word sks."""
    folder = tmp_path / "with trigger"
    folder.mkdir()
    for path in captioned_photographs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "README.md").write_text("---\ntrigger_word: sks\n---\n")
    return folder


def test_a_run_draws_at_step_0_and_every_n_steps_with_pairs_and_training_does_not_notice(train, with_trigger, tmp_path):
    common = {"train_data_dir": str(with_trigger), "max_train_steps": 5, "lora_dropout": 0.3, "learning_rate": 1e-2}
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog --w 32 --n dark, blurry\n")
    watching = {
        "validation_prompt": ("sks, a cat --d 9 --s 2",), "validation_prompts_file": str(prompts),
        "validation_without_trigger": True, "num_validation_images": 1, "validation_steps": 2,
        "validation_inference_steps": 1,
    }  # fmt: skip
    run = train(**common, **watching, output_dir=str(tmp_path / "watched"))
    steps = [int(path.name[5:11]) for path in sorted((run / "samples").glob("step-*-prompt-0-*.png"))]
    assert steps == [0, 2, 4, 5]
    drawn = read_samples(run / "samples", 5, 3, 1)
    assert [images[0].text["parameters"].split("\n")[0] for images in drawn] == ["sks, a cat", "a cat", "a dog"]
    assert "Steps: 2" in drawn[1][0].text["parameters"] and "Seed: 9" in drawn[1][0].text["parameters"]
    assert drawn[2][0].size == (32, 64) and "Negative prompt: dark, blurry" in drawn[2][0].text["parameters"]
    events = list(read_events(run / "events.jsonl", "samples"))
    assert [event["step"] for event in events] == [0, 2, 4, 5]
    assert events[0]["prompts"] == ["sks, a cat", "a cat", "a dog"] and events[0]["grid"].endswith("grid.png")

    first, last = (np.asarray(read_samples(run / "samples", step, 1, 1)[0][0]) for step in (0, 5))
    assert (first != last).any()
    plain = train(**common, output_dir=str(tmp_path / "plain"))
    assert_equal_weights(weights_of(plain, 5), weights_of(run, 5))

    # Killed between the save and its pictures: the next start draws them, the same.
    before = sample_path(run / "samples", 5, 0, 0).read_bytes()
    sample_path(run / "samples", 5, 0, 0).unlink()
    train(**common, **watching, output_dir=str(run))
    assert sample_path(run / "samples", 5, 0, 0).read_bytes() == before


def test_prompts_that_cannot_be_are_refused_before_any_work(train, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read validation_prompts_file nowhere\.txt"):
        train(validation_prompts_file="nowhere.txt")
    wrong = tmp_path / "prompts.txt"
    wrong.write_text("a cat --w 63")
    with pytest.raises(ConfigError, match="has a width of 63"):
        train(validation_prompts_file=str(wrong))
    with pytest.raises(ConfigError, match="needs a trigger word"):
        train(validation_prompt=("sks, a cat",), validation_without_trigger=True)
    assert nothing_is_cached(tmp_path)


def test_zero_terminal_snr_rescales_guidance_by_itself(train_config):
    assert guidance_rescale_of(train_config(), {"rescale_betas_zero_snr": True}) == 0.7
    assert guidance_rescale_of(train_config(), {}) == 0
    assert guidance_rescale_of(train_config(validation_guidance_rescale=0.0), {"rescale_betas_zero_snr": True}) == 0
