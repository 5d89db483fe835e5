"""Forecast of --dry_run: the training then does the same."""

import re
import shutil

import pytest
import torch

import train_sdxl_lora
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.run.events import read_events
from sdxl_lora.run.pace import duration
from sdxl_lora.training.batch_shape import encoding_bytes
from sdxl_lora.training.checks import check_device
from sdxl_lora.training.dry_run import described, dry_run, plan_training
from tests.helpers.adapters import kohya_file, tiny_with_lora
from tests.helpers.caches import nothing_is_cached

CASES = {
    "defaults": {},
    "flips, epochs, a split and samples": {
        "random_flip": True, "max_train_steps": None, "num_train_epochs": 3, "train_batch_size": 2,
        "validation_split": 0.25, "validation_prompt": ("a cat", "a dog --n blurry"), "num_validation_images": 1,
        "validation_inference_steps": 1, "init_lora_weights": "pissa", "vae_batch_size": 3, "vae_precision": "bf16",
    },
    "varied captions in two chunks, all layers": {
        "shuffle_caption": True, "caption_separator": " ", "max_caption_chunks": 2,
        "target_modules": "all-linear+conv", "block_ranks": ("mid=1", "down.0=0"),
    },
    "text encoders": {"train_text_encoder": True, "use_dora": True, "gradient_accumulation_steps": 2},
    "text encoders alone": {"train_text_encoder": True, "train_unet": False, "gradient_checkpointing": True},
    "lokr": {"adapter": "lokr", "max_cached_captions": 1, "proportion_empty_prompts": 0.5},
}  # fmt: skip
MORE = {
    "flips, epochs, a split and samples",
    "varied captions in two chunks, all layers",
    "text encoders",
    "text encoders alone",
    "lokr",
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in MORE else ()) for case in CASES])
def test_numbers_are_those_of_the_run(train, train_config, tmp_path, case):
    config = train_config(**CASES[case])
    plan = plan_training(config)
    said = described(plan, [])
    images, prompts, latents, texts = plan.cached_bytes()
    assert not (tmp_path / "run").exists() and nothing_is_cached(tmp_path)

    started = next(read_events(train(**CASES[case]) / "events.jsonl", "started"))
    assert started["total_steps"] == plan.data.total_steps
    assert f"{plan.data.total_steps} of {plan.data.images_per_step} " in said
    assert started["parameters"] == sum(parameter.numel() for parameter in plan.meta.adapter_parameters())
    assert f"together         {started['parameters']:>12,} parameters" in said
    by_group = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) parameters in", said)]
    assert sum(by_group) == started["parameters"]
    for folder, records, size in (("latents", images, latents), ("text", prompts, texts)):
        files = [path.stat().st_size for path in (tmp_path / "cache" / folder).rglob("*.safetensors")]
        assert (len(files), sum(files)) == (records, size), folder
    assert f"{images} images, {latents:,} bytes; {prompts} prompts, {texts:,} bytes" in said
    assert "holds checkpoint-" in plan.of_output()[0] and "but for what is there already" in plan.of_caches()[1]


def test_the_full_model_is_planned_without_its_weights(train_config, full_configs):
    plan = plan_training(train_config(
        pretrained_model_name_or_path=str(full_configs), rank=16, resolution=1024, mixed_precision="bf16",
        gradient_checkpointing=True, max_train_steps=1000,
    ))  # fmt: skip
    said = described(plan, [])
    assert "23,224,320 parameters" in said and "4 of 1024x1024" in said
    assert "UNet 4.78" in said and "adapter and optimizer 0.35" in said and "activations 0.54" in said
    assert re.search(r"about 6\.5 GiB while training", said), said
    assert "about 3.6 GiB while images are encoded" in said
    assert plan.work().training == pytest.approx(1000 * 19.7e12, rel=0.02), "benchmarks count as much"
    assert re.search(r"at least 13 min \d\d s on an RTX 3060, 2 min 0\d s on an RTX 4090, by .* TFLOP of", said), said
    assert "no GPU is here to measure" in said


def test_a_unet_that_does_not_train_is_counted_as_it_computes(train_config):
    """In the base's precision without autocast; it has fewer values to keep than one that trains."""
    settings = {"mixed_precision": "bf16", "train_text_encoder": True}
    plans = [plan_training(train_config(train_unet=trains, **settings)) for trains in (True, False)]
    with_unet, alone = (plan.count for plan in plans)
    assert with_unet.unet.dtype == alone.unet.dtype == torch.bfloat16 and not alone.autocast
    assert alone.cost("none", 1).bytes < with_unet.cost("none", 1).bytes


def test_the_least_time_is_counted_from_products_and_the_devices_rate(train_config):
    """Twice the steps, prompts, pictures or processes change each part as they should."""
    settings = {"max_train_steps": 30, "random_flip": True, "validation_split": 0.25, "num_validation_images": 3}
    settings |= {"validation_prompt": ("a cat --s 4", "a dog --s 6 --l 1 --w 128 --h 64"), "validation_steps": 10}
    plan = plan_training(train_config(**settings))
    work, step = plan.work(), plan.count.cost("none", 1)
    assert work.training == pytest.approx(30 * step.both.at(1))
    assert work.samples == pytest.approx(4 * 3 * (4 * 2 * step.forward.at(1) + 6 * step.forward.at(2)))
    assert work.validation == pytest.approx(4 * 4 * step.forward.at(1))
    assert work.encoding == pytest.approx(2 * 4 * plan._encoding.both.at(1)) and work.encoding > 0
    assert "4 times, each 6 samples, 1 held out" in "\n".join(plan.of_steps())
    seconds = work.training / 1e9 + work.samples / 1e9 + work.validation / 1e9 + work.encoding / 1e6
    said = plan.of_time(lambda device, dtype: 1e6 if dtype == torch.float32 else 1e9)
    asked = []
    plan.of_time(lambda device, dtype: asked.append((device.type, dtype)) or 1e9)
    assert asked == [(plan.device.type, torch.float32)] * 2
    one, caching = plan, {"vae_batch_size": 4, "vae_precision": "fp16"}
    plan = plan_training(train_config(**settings, mixed_precision="bf16"))
    said = plan.of_time(lambda device, dtype: 1e6 if dtype == torch.float32 else 1e9)
    assert said[0].startswith(f"at least {duration(seconds)} on this device (cpu): training ")
    four = plan_training(train_config(**settings, **caching))
    asked.clear()
    four.rates(lambda device, dtype: asked.append(dtype))
    assert asked == [torch.float32, torch.float16], "the VAE's own"
    bytes_of_one, bytes_of_four = (encoding_bytes(each.config, each.meta, each.count.size) for each in (one, four))
    weights = one.meta.values["vae"]
    assert bytes_of_four - 6 * weights == pytest.approx(4 * (bytes_of_one - 4 * weights) / 2, rel=0.01)
    one_in_half = replace_flat(four.config, vae_batch_size=1)
    assert encoding_bytes(one_in_half, four.meta, four.count.size) == bytes_of_one + 2 * weights, "one may overflow"


def test_warnings_and_what_is_taken_along_are_said(train_config, captioned_photographs, tmp_path):
    (tmp_path / "long").mkdir()
    for name in ("coffee.png", "rocket.jpg"):
        (tmp_path / "long" / name).write_bytes((captioned_photographs / name).read_bytes())
    (tmp_path / "long" / "coffee.txt").write_text("a cup " * 30)
    start = kohya_file(tmp_path, tiny_with_lora(3, 2, components=("unet",), layers=1)[1])
    said = dry_run(train_config(
        train_data_dir=None, datasets=(f"{captioned_photographs}:2", str(tmp_path / "long")), init_lora=str(start),
        train_batch_size=16,
    ))  # fmt: skip
    for words in (
        "1 prompts are longer than 75 tokens",
        "1 of 2 images have an empty caption: ",
        "modules of init_lora, rank 3",
        "4 of them 2 times per epoch",
        "1 sizes have fewer images than a step",
    ):
        assert words in said, words


def test_what_would_end_the_run_ends_the_dry_run(train_config, capsys, monkeypatch):
    with pytest.raises(DataError, match="no such folder"):
        dry_run(train_config(train_data_dir="nowhere"))
    with pytest.raises(ConfigError, match="no module is trained there"):
        dry_run(train_config(block_lr_factors=("up.2=1",)))
    with pytest.raises(ConfigError, match="no such base model"):
        dry_run(train_config(pretrained_model_name_or_path="nowhere.safetensors"))
    with pytest.raises(ConfigError, match="fp8 cannot be used on Apple's GPUs"):
        check_device(train_config(base_precision="fp8"), 1, "mps")
    for settings, words in (
        ({"zero_terminal_snr": True}, "needs a base that predicts v"),
        ({"max_timestep": 2000}, "must be in order"),
        ({"adapter": "loha", "lora_plus_ratio": 4.0}, "lora_plus_ratio is for LoRA"),
        ({"optimizer_args": ("momentun=0.9",)}, "does not take"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_blocks": ("up_blocks.7",)}, "has up_blocks.7"),
        ({"memory_budget": "0.1GB"}, "memory_budget 0.1 GiB is too small"),
    ):
        with pytest.raises(ConfigError, match=words):
            dry_run(train_config(**settings))
    assert train_sdxl_lora.main(train_config(dry_run=True, target_modules="nothing")) == 2
    assert "matches no linear or convolution layer" in capsys.readouterr().err
    of_four = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in of_four.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="module_dropout of a loha is for one process"):
        dry_run(train_config(adapter="loha", module_dropout=0.1))
    plan = plan_training(train_config(max_train_steps=None, num_train_epochs=4))
    assert (plan.data.images_per_step, plan.data.total_steps) == (4, 4)
    monkeypatch.delenv("WORLD_SIZE")
    assert train_sdxl_lora.main(train_config(dry_run=True)) == 0
    assert capsys.readouterr().out.startswith("dry run: nothing is trained or written")


def test_a_card_that_no_lora_file_could_be_written_with_ends_the_run_before_any_work(
    train, captioned_photographs, tmp_path
):
    """It is read for each LoRA file, the first of which may come hours later."""
    folder = shutil.copytree(captioned_photographs, tmp_path / "data")
    (folder / "README.md").write_text("---\ntrigger_word: {a: b}\n---\n")
    with pytest.raises(DataError, match=r"trigger_word in .* must be a single string"):
        train(train_data_dir=str(folder))
    assert nothing_is_cached(tmp_path)
