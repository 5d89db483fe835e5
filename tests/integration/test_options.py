"""Everything people train with, in the real loop on the tiny base: switched on it trains, resumes exactly, and is
refused where it cannot be. What each option does in numbers is tested beside the module that does it.
"""

import json
import re
import shutil
import warnings

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sdxl_lora.errors import CheckpointError, ConfigError, DataError
from sdxl_lora.run.events import read_events
from tests.helpers.marks import slow
from tests.helpers.runs import assert_equal_weights, assert_resumes_exactly, weights_of


@pytest.fixture
def masked_images(captioned_photographs, tmp_path):
    """A prepared folder: a picture with a mask, one without, and a class image."""
    folder = tmp_path / "masked"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, name in enumerate(("astronaut.png", "coffee.png", "chelsea.jpg")):
        with Image.open(captioned_photographs / name) as image:
            image.resize((64, 64)).save(folder / "images" / f"{number}.png")
        sizes = {"original_size": [64, 64], "crop_top_left": [0, 0]}
        rows.append({"file_name": f"images/{number}.png", "text": name, **sizes, "is_class_image": number == 2})
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 0, 64, 48))
    mask.save(folder / "images" / "0-mask.png")
    rows[0]["mask_file_name"] = "images/0-mask.png"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


OBJECTIVE = {
    "prediction_type": "v_prediction",
    "zero_terminal_snr": True,
    "snr_gamma": 5.0,
    "loss_type": "huber",
    "huber_schedule": "snr",
    "noise_offset": 0.05,
    "input_perturbation": 0.1,
    "multires_noise_iterations": 3,
    "masked_loss": True,
    "prior_loss_weight": 0.5,
    "timestep_bias_strategy": "later",
    "timestep_bias_multiplier": 4.0,
}


def test_a_run_with_every_part_of_the_objective_resumes_exactly(train, tmp_path, masked_images):
    settings = {**OBJECTIVE, "train_data_dir": str(masked_images)}
    run = assert_resumes_exactly(
        train, tmp_path, **settings, train_batch_size=3, random_flip=True,
        validation_prompt=("a cat",), num_validation_images=1, validation_inference_steps=2,
    )  # fmt: skip
    for step in read_events(run / "events.jsonl", "step"):
        by_timestep = [step[name] for name in step if name.startswith("loss_timesteps_")]
        assert 0 < min(by_timestep) <= step["loss"] <= max(by_timestep) < 10
    with pytest.raises(CheckpointError, match=r"snr_gamma +5.0 +None"):
        train(**{**settings, "snr_gamma": None}, max_train_steps=3, train_batch_size=3, output_dir=str(run))


def test_a_run_on_a_base_that_predicts_a_flow_resumes_exactly_and_says_so_in_its_file(
    train, tmp_path, tiny_base, masked_images
):
    base = shutil.copytree(tiny_base, tmp_path / "flow")
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(base / "scheduler")
    run = assert_resumes_exactly(
        train, tmp_path, pretrained_model_name_or_path=str(base), train_data_dir=str(masked_images),
        masked_loss=True, timestep_sampling="logit_normal", validation_split=0.34, validation_prompt=("a cat",),
        num_validation_images=1, validation_inference_steps=2,
    )  # fmt: skip
    assert [event["step"] for event in read_events(run / "events.jsonl", "validation")][-1] == 3
    with safe_open(run / "whole.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.prediction_type"] == "flow" and "ModelSamplingSD3" in metadata["modelspec.usage_hint"]
    assert "shift 2" in metadata["modelspec.usage_hint"]
    for wrong in (
        {"snr_gamma": 5.0},
        {"debiased_estimation": True},
        {"zero_terminal_snr": True},
        {"noise_offset": 0.1},
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} does not go with a base that predicts a flow"):
            train(**wrong, pretrained_model_name_or_path=str(base), output_dir=str(tmp_path / "refused"))
    assert not list((tmp_path / "refused").glob("checkpoint-*"))


def test_a_run_that_preserves_the_base_resumes_exactly_and_reports_its_loss_apart(
    train, tmp_path, captioned_photographs
):
    entry = f"{{train_data_dir: '{captioned_photographs}', trigger_word: sks}}"
    settings = {
        "train_data_dir": None, "datasets": (entry,), "output_preservation": 0.5, "preservation_class": "cat",
        "shuffle_caption": True, "lora_dropout": 0.1, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    run = assert_resumes_exactly(train, tmp_path, **settings)
    steps = list(read_events(run / "events.jsonl", "step"))
    kept = [step for step in steps if "preservation_loss" in step]
    assert 0 < len(kept) < len(steps) and all(step["preservation_loss"] == step["loss"] for step in kept)
    assert not any(name.startswith("loss_timesteps_") for step in kept for name in step)
    with pytest.raises(CheckpointError, match=r"output_preservation +0.5 +0.25"):
        train(**{**settings, "output_preservation": 0.25}, max_train_steps=4, output_dir=str(run))
    with pytest.raises(ConfigError, match="output_preservation needs a trigger word"):
        train(output_preservation=0.5, output_dir=str(tmp_path / "refused"))
    assert not list((tmp_path / "refused").glob("checkpoint-*"))


@pytest.mark.parametrize("mid_block_type", [*slow("UNetMidBlock2D"), None])
def test_a_smaller_unet_trains_and_diffusers_loads_its_file(train, tmp_path, tiny_base, mid_block_type):
    """As SSD-1B's and Vega's: fewer transformers in each place, less in the middle or nothing."""
    base = shutil.copytree(tiny_base, tmp_path / "small")
    config = json.loads((base / "unet" / "config.json").read_text()) | {"mid_block_type": mid_block_type}
    config |= {"transformer_layers_per_block": [1, [1, 1], [2, 1]]}
    config |= {"reverse_transformer_layers_per_block": [[1, 1, 2], [1, 1, 1], 1]}
    UNet2DConditionModel.from_config(config).save_pretrained(base / "unet")
    run = train(pretrained_model_name_or_path=str(base), max_train_steps=1)
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.load_lora_weights(run, weight_name="run.safetensors")
    trained = [name for name in pipeline.unet.state_dict() if ".lora_A." in name]
    assert len(trained) == len([name for name in pipeline.unet.state_dict() if re.search(r"attn\d\.to_.*lora_A", name)])
    assert len(trained) > 10


def test_all_that_a_flow_cannot_have_is_named_at_once(train_config):
    with pytest.raises(ConfigError) as raised:
        train_config(
            prediction_type="flow", snr_gamma=5.0, zero_terminal_snr=True, noise_offset=0.1, multires_noise_iterations=2
        )
    assert str(raised.value).count("does not go with a base that predicts a flow") == 4
    with pytest.raises(ConfigError, match="flow_shift needs prediction_type flow, not epsilon"):
        train_config(prediction_type="epsilon", flow_shift=3.0)


def test_an_objective_that_cannot_be_is_refused_before_training(train, tmp_path):
    with pytest.raises(ConfigError, match="zero_terminal_snr needs a base that predicts v"):
        train(zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="min_timestep 0 and max_timestep 2000 must be in order, from 0 to 1000"):
        train(max_timestep=2000)
    with pytest.raises(DataError, match="masked_loss needs a dataset with a column mask"):
        train(masked_loss=True)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize(
    "settings",
    [
        *slow({"optimizer": "schedule_free_adamw", "lora_plus_ratio": 4.0, "optimizer_args": ("r=0.5",)}),
        {
            "optimizer": "prodigy",
            "learning_rate": 1.0,
            "lora_dropout": 0.1,
            "ema_decay": 0.9,
            "train_text_encoder": True,
        },
        *slow({"optimizer": "prodigy_plus_schedule_free", "learning_rate": 1.0, "max_grad_norm": 0.0}),
    ],
)
def test_a_run_with_an_unusual_optimizer_resumes_exactly(train, tmp_path, settings):
    whole = assert_resumes_exactly(train, tmp_path, **settings)
    published = load_file(whole / "pytorch_lora_weights.safetensors")
    trained = weights_of(whole, 3)
    name = next(name for name in published if "to_q.lora_A" in name)
    is_average = not torch.equal(published[name], trained[name])
    assert is_average, "what is published is an average, of schedule-free AdamW or by ema_decay"
    for file in ("pytorch_lora_weights.safetensors", "whole.safetensors"):  # also in the checkpoint, and after resuming
        for folder in (whole, whole / "checkpoint-3", tmp_path / "parts"):
            path = folder / file.replace("whole", folder.name if folder.name == "parts" else "whole")
            other = load_file(whole / file)
            assert_equal_weights(load_file(path), other)


@pytest.mark.parametrize("optimizer", [*slow("came", "adopt"), "muon"])
def test_a_run_with_a_newer_optimizer_resumes_exactly(train, tmp_path, optimizer):
    run = assert_resumes_exactly(train, tmp_path, optimizer=optimizer)
    assert weights_of(run, 3) and all(tensor.isfinite().all() for tensor in weights_of(run, 3).values())


def test_captions_encoded_live_train_what_cached_ones_do(train, tmp_path, capsys):
    settings = {
        "shuffle_caption": True, "caption_separator": " ", "keep_tokens": 1, "proportion_empty_prompts": 0.3,
        "max_caption_chunks": 2, "max_train_steps": 3, "train_batch_size": 2, "validation_prompt": ("a cat " * 20,),
        "num_validation_images": 1, "validation_inference_steps": 2,
    }  # fmt: skip
    cached = train(**settings, output_dir=str(tmp_path / "cached"))
    said = capsys.readouterr().err
    assert "captions vary: all" in said and "that will occur are cached" in said
    live = train(
        **settings, output_dir=str(tmp_path / "live"), max_cached_captions=1, cache_dir=str(tmp_path / "another cache")
    )
    assert "captions vary in more than 1 ways: the text encoders stay and encode them live" in capsys.readouterr().err
    assert_equal_weights(weights_of(live, 3), weights_of(cached, 3))
    assert (live / "samples" / "step-000003-prompt-0-image-0.png").exists()


def test_what_is_not_cached_trains_the_same_and_leaves_nothing_on_the_disk(train, tmp_path):
    settings = {"random_flip": True, "max_train_steps": 3, "train_batch_size": 2, "validation_split": 0.25}
    cached = train(**settings, output_dir=str(tmp_path / "cached"))
    live = {"cache_latents": False, "cache_text_embeddings": False, "cache_dir": str(tmp_path / "another cache")}
    plain = train(**settings, **live, output_dir=str(tmp_path / "live"))
    assert_equal_weights(weights_of(plain, 3), weights_of(cached, 3))
    assert not list((tmp_path / "another cache" / "latents").glob("*/*"))
    with pytest.raises(ConfigError, match="cache_part fills the caches: leave out no_cache_latents"):
        train(cache_latents=False, cache_part="1/2")


def test_captions_that_are_cut_are_pointed_out_also_where_text_encoders_train(train, captioned_photographs, tmp_path):
    shutil.copytree(captioned_photographs, tmp_path / "long")
    (tmp_path / "long" / "coffee.txt").write_text("a cup " * 20)
    settings = {"train_data_dir": str(tmp_path / "long"), "max_train_steps": 1, "train_text_encoder": True}
    with pytest.warns(UserWarning, match=r"1 prompts are longer than 75 tokens.*'a cup a cup"):
        train(**settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*prompts are longer")
        train(**settings, max_caption_chunks=2, output_dir=str(tmp_path / "chunks"))


def test_prompts_that_are_cut_are_pointed_out(train):
    with pytest.warns(
        UserWarning, match=r"1 prompts are longer than 75 tokens.*--max_caption_chunks 2 reads them in full"
    ):
        train(
            max_train_steps=1, validation_prompt=("a cat " * 20,), num_validation_images=1, validation_inference_steps=1
        )


def test_several_captions_are_cached_resume_exactly_and_shares_must_be_the_same(train, masked_images, tmp_path):
    rows = [json.loads(line) for line in (masked_images / "metadata.jsonl").read_text().splitlines()]
    rows[0]["captions"], rows[1]["captions"] = [rows[0]["text"], "1girl, solo"], [rows[1]["text"], "cup", "table"]
    (masked_images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"train_data_dir": str(masked_images), "caption_shares": (1, 3, 2), "train_batch_size": 3}
    assert_resumes_exactly(train, tmp_path, **settings)
    captions = {caption for example in train.trained.data.examples for caption in example.captions}
    assert len(captions) == 6 and train.trained.data.text.live_parts is None
    with pytest.raises(CheckpointError, match="caption shares 1 3 2"):
        train(**settings | {"caption_shares": ()}, max_train_steps=4, output_dir=str(tmp_path / "parts"))
    with pytest.raises(ConfigError, match="has 3 captions but caption_shares has 2"):
        train(**settings | {"caption_shares": (1, 1)}, output_dir=str(tmp_path / "refused"))
