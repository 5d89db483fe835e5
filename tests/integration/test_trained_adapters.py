"""Training changes the adapter alone, and its files hold the trained weights, in the real loop on the tiny base."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.state import lora_state
from tests.helpers.adapters import kohya_file, tiny_with_lora
from tests.helpers.marks import slow
from tests.helpers.runs import assert_equal_weights, column, first_batch, weights_of


def test_only_adapter_weights_move(train, tiny_base):
    train(max_train_steps=2, target_modules="attention+ff")
    trained = train.trained.model.unet
    base = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet").state_dict()
    state = trained.state_dict()
    frozen = {name.replace(".base_layer", ""): value for name, value in state.items() if ".lora_" not in name}
    assert frozen.keys() == base.keys() and all(torch.equal(frozen[name], base[name]) for name in base)
    assert all((value != 0).any() for name, value in lora_state(trained).items() if "lora_B" in name)
    assert {parameter.dtype for parameter in train.trained.train_step.parameters} == {torch.float32}


@pytest.mark.parametrize("alpha", [*slow(None, 1.0), 9.0])
def test_the_lora_file_gives_the_trained_unets_outputs(train, two_layers, alpha):
    run = train(pretrained_model_name_or_path=str(two_layers), max_train_steps=3, learning_rate=1e-2, lora_alpha=alpha)
    batch = first_batch(train.trained)
    inputs = {
        "sample": batch["latents"],
        "timestep": batch["timesteps"],
        "encoder_hidden_states": batch["prompt_embeds"],
        "added_cond_kwargs": {"text_embeds": batch["pooled_embeds"], "time_ids": batch["time_ids"]},
    }

    @torch.no_grad()
    def output(unet):
        return unet.eval()(**inputs).sample

    base = output(UNet2DConditionModel.from_pretrained(two_layers, subfolder="unet"))
    trained = output(train.trained.model.unet)
    assert (trained - base).abs().max() > 1e-2, "it must have learned something for this to mean anything"
    for source in (run, run / "checkpoint-3"):
        for name in ("pytorch_lora_weights.safetensors", "run.safetensors"):
            fresh = StableDiffusionXLPipeline.from_pretrained(two_layers)
            fresh.load_lora_weights(source, weight_name=name)
            torch.testing.assert_close(output(fresh.unet), trained, atol=1e-5, rtol=1e-5)


def assert_gives_embeddings(base, run, name, expected):
    """The run's file of that name gives the base the embeddings of "a tabby cat" that training ended with."""
    fresh = StableDiffusionXLPipeline.from_pretrained(base)
    fresh.load_lora_weights(run, weight_name=name)
    embeds, _, pooled, _ = fresh.encode_prompt("a tabby cat", device="cpu")
    torch.testing.assert_close(embeds[0], expected["prompt_embeds"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled[0], expected["pooled_embeds"], atol=1e-4, rtol=1e-4)


def test_text_encoders_train_and_their_lora_gives_the_trained_embeddings(train, tiny_base):
    run = train(
        train_text_encoder=True, max_train_steps=4, learning_rate=1e-2, lora_alpha=9.0, gradient_checkpointing=True,
        validation_prompt=("a cat",), num_validation_images=1, validation_inference_steps=1,
    )  # fmt: skip
    moved = {name for name, tensor in weights_of(run, 4).items() if ".lora_B." in name and tensor.abs().max() > 1e-4}
    assert {name.split(".")[0] for name in moved} == {"unet", "text_encoder", "text_encoder_2"}
    assert len(moved) == len([name for name in weights_of(run, 4) if ".lora_B." in name]), "every one has a gradient"
    trained = train.trained.model.text.read("a tabby cat")
    base = StableDiffusionXLPipeline.from_pretrained(tiny_base)
    assert (trained["prompt_embeds"] - base.encode_prompt("a tabby cat", device="cpu")[0]).abs().max() > 1e-2
    for name in ("pytorch_lora_weights.safetensors", "run.safetensors"):
        assert_gives_embeddings(tiny_base, run, name, trained)


def test_text_encoders_train_alone_resume_exactly_and_their_file_holds_nothing_else(train, tiny_base, tmp_path):
    alone = {"train_text_encoder": True, "train_unet": False, "learning_rate": 1e-2, "ema_decay": 0.9}
    whole = train(**alone, output_dir=str(tmp_path / "whole"))
    trained = train.trained.model
    with train.trained.evaluator.shown.shown():
        read = trained.text.read("a tabby cat")
    base = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet").state_dict()
    state = trained.unet.state_dict()
    assert state.keys() == base.keys() and all(torch.equal(state[name], base[name]) for name in base)
    assert not any(parameter.requires_grad for parameter in trained.unet.parameters())
    moved = {name for name, tensor in weights_of(whole, 4).items() if ".lora_B." in name and tensor.any()}
    assert {name.split(".")[0] for name in moved} == {"text_encoder", "text_encoder_2"}
    train(**alone, max_train_steps=2)
    assert_equal_weights(weights_of(train(**alone), 4), weights_of(whole, 4))
    for name in ("pytorch_lora_weights.safetensors", "whole.safetensors"):
        assert {component for component, _ in read_lora(whole / name).adapters} == {"text_encoder", "text_encoder_2"}
        assert_gives_embeddings(tiny_base, whole, name, read)


def test_what_would_leave_nothing_to_train_is_refused(train, train_config, tmp_path):
    for settings, words in (
        ({}, "nothing would train"),
        ({"train_text_encoder": True, "block_ranks": ("up=2",)}, "block_ranks is for the UNet"),
        ({"train_text_encoder": True, "block_lr_factors": ("up=2",)}, "block_lr_factors is for the UNet"),
        ({"train_text_encoder": True, "stop_text_encoder_training": 0.5}, "leaves nothing to train"),
        ({"train_text_encoder": True, "text_encoder_lr": 0.0}, "leaves nothing to train"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_config(train_unet=False, **settings)
    file = kohya_file(tmp_path, tiny_with_lora(4, 3, components=("unet",))[1])
    with pytest.raises(ConfigError, match="has nothing for text_encoder or text_encoder_2: add --train_unet"):
        train(train_text_encoder=True, train_unet=False, init_lora=str(file))
    train(train_text_encoder=True, max_train_steps=1)
    with pytest.raises(CheckpointError, match="train_unet"):
        train(train_text_encoder=True, train_unet=False, max_train_steps=2)


def test_text_encoders_have_rates_of_their_own_and_an_end(train):
    rates = {"train_text_encoder": True, "max_train_steps": 4, "checkpointing_steps": 1}
    run = train(**rates, text_encoder_lr=0.0, text_encoder_2_lr=1e-3, stop_text_encoder_training=0.5)

    def moved(name, first, second):
        before, after = weights_of(run, first), weights_of(run, second)
        return any(not torch.equal(before[key], after[key]) for key in before if key.startswith(f"{name}."))

    assert moved("unet", 1, 2) and moved("unet", 2, 4)
    assert moved("text_encoder_2", 1, 2) and not moved("text_encoder_2", 2, 4)
    assert not moved("text_encoder", 1, 4)


def test_untrained_text_encoders_give_what_the_cache_gives(train, tmp_path):
    cached = train(output_dir=str(tmp_path / "cached"))
    live = train(output_dir=str(tmp_path / "live"), train_text_encoder=True, text_encoder_lr=0.0)
    assert column(live, "loss") == pytest.approx(column(cached, "loss"), rel=1e-5)


@pytest.mark.parametrize(
    "settings, whole_file",
    [
        *slow(({"use_rslora": True, "lora_alpha": 2.0}, "run.safetensors")),
        ({"use_dora": True}, "pytorch_lora_weights.safetensors"),
        ({"adapter": "lokr"}, "pytorch_lora_weights.safetensors"),
    ],
)
def test_other_adapters_train_resume_and_load(train, two_layers, settings, whole_file):
    settings = {**settings, "pretrained_model_name_or_path": str(two_layers)}
    train(**settings, max_train_steps=2, learning_rate=1e-2)
    run = train(**settings, max_train_steps=3, learning_rate=1e-2)
    assert column(run, "step") == [1, 2, 3]
    batch = first_batch(train.trained)
    inputs = (batch["latents"], batch["timesteps"], batch["prompt_embeds"])
    conditions = {"text_embeds": batch["pooled_embeds"], "time_ids": batch["time_ids"]}
    fresh = StableDiffusionXLPipeline.from_pretrained(two_layers)
    fresh.load_lora_weights(run, weight_name=whole_file)
    with torch.no_grad():
        trained, loaded = (
            unet.eval()(*inputs, added_cond_kwargs=conditions).sample for unet in (train.trained.model.unet, fresh.unet)
        )
    torch.testing.assert_close(loaded, trained, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_adapter_weights_are_float32_in_every_precision(train, precision):
    run = train(mixed_precision=precision, max_train_steps=2, rank=2)
    assert {tensor.dtype for tensor in weights_of(run, 2).values()} == {torch.float32}
    assert all(0 < loss < 10 for loss in column(run, "loss"))
