"""Starts of an adapter: from a LoRA file of any layout, from the base's main directions; and what drops out of it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.formats.writer import save_peft
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.targets import exactly
from sdxl_lora.lora.warm_start import layers_of, load_adapters, lokr_factor, read_warm_start
from tests.helpers.adapters import kohya_file, largest_difference, model_adapters, outputs, tiny_with_lora
from tests.helpers.caches import nothing_is_cached
from tests.helpers.configs import flat_train_config
from tests.helpers.marks import slow

STAND = {"max_train_steps": 1, "learning_rate": 0.0}  # the whole loop, and no weight moves
PATTERNS = {"rank_pattern": {"to_q": 7}, "alpha_pattern": {"to_k": 9}}


def adapters_of(models):
    return {
        (component, name): adapter
        for component, model in models.items()
        for name, adapter in model_adapters(model, component).items()
    }


def assert_equal_deltas(one, two):
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(delta(one[key]), delta(two[key]), atol=1e-6, rtol=1e-5)


def diffusers_file(folder, models):
    return write_lora_files(folder, "kohya", models, "fp32")[1]


def kohya_file_of_diffusers_names_and_many_ranks(folder, models):
    """As people's own scripts write it: each module with its own rank and alpha."""
    tensors = {}
    for (_, name), adapter in adapters_of(models).items():
        stem = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{stem}.{part}.weight": tensor for part, tensor in adapter.tensors.items()}
        tensors[f"{stem}.alpha"] = torch.tensor(adapter.alpha)
    save_file(tensors, folder / "mixed.safetensors")
    return folder / "mixed.safetensors"


def peft_folder(folder, models):
    return save_peft(folder / "peft", adapters_of(models), "fp32")[0].parent


def begun(file, kind="lora", components=("unet",)):
    """A tiny base's models that begin as the file, and what is to be said of it."""
    start = read_warm_start(file, kind, components)
    options = {"use_dora": True} if kind == "dora" else {"kind": kind}
    models = {component: getattr(tiny_sdxl(), component) for component in components}
    for component, model in models.items():
        adapters = start.adapters[component]
        layers = exactly(layers_of(model, component, adapters))
        add_lora(model, **layers, lokr_factor=lokr_factor(adapters.values()), **options)
        load_adapters(model, component, adapters)
    return models, start.notes


@pytest.mark.parametrize(
    "write", [kohya_file, diffusers_file, kohya_file_of_diffusers_names_and_many_ranks, peft_folder]
)
def test_an_adapter_begins_as_the_files_change_of_the_weights(tmp_path, write):
    _, models = tiny_with_lora(4, 3, "attention+ff", ("unet",), **PATTERNS)
    here, notes = begun(write(tmp_path, models))
    assert_equal_deltas(adapters_of(here), adapters_of(models))
    ranks = {adapter.rank for adapter in adapters_of(here).values()}
    assert ranks == ({4, 7} if "many_ranks" in write.__name__ else {7}), "kohya_file and others give all the largest"
    assert notes[0].startswith(f"unet: {len(adapters_of(models))} modules of init_lora, rank ")


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, *slow({"kind": "loha"}, {"kind": "lokr"}), {"kind": "lokr", "lokr_factor": 4}],
    ids=["dora", "loha", "lokr", "lokr of factor 4"],
)
def test_other_kinds_begin_as_their_files_too(tmp_path, options):
    trained, models = tiny_with_lora(2, 3, "attention+ff", ("unet",), **options)
    kohya, diffusers = write_lora_files(tmp_path, "own", models, "fp32")
    file = diffusers if "use_dora" in options else kohya
    here = tiny_sdxl()
    here.unet = begun(file, options.get("kind", "dora"))[0]["unet"]
    assert largest_difference(outputs(here), outputs(trained)) < 1e-4


def test_a_training_begins_there_by_the_files_ranks(train, tmp_path):
    _, models = tiny_with_lora(4, 3, "attention+ff", ("unet",), layers=1, **PATTERNS)
    file = kohya_file_of_diffusers_names_and_many_ranks(tmp_path, models)
    run = train(**STAND, init_lora=str(file), target_modules="attention", rank=2)
    for name in ("run.safetensors", "pytorch_lora_weights.safetensors"):
        assert_equal_deltas(read_lora(run / name).adapters, adapters_of(models))
    state = load_file(run / "checkpoint-1" / "lora_state.safetensors")
    for part, rank in ((".to_q.", 7), (".to_k.", 4)):
        assert {tensor.shape[0] for name, tensor in state.items() if f"{part}lora_A" in name} == {rank}


def test_text_encoders_go_on_where_they_train_and_are_missed_where_they_do_not(train, tmp_path, capsys):
    _, models = tiny_with_lora(4, 3, layers=1)
    file = kohya_file(tmp_path, models)
    run = train(**STAND, init_lora=str(file), train_text_encoder=True)
    read, expected = read_lora(run / "run.safetensors").adapters, adapters_of(models)
    unread = {key for key in expected if key[0] == "text_encoder" and ".layers.2." in key[1]}
    assert unread and not unread & {key for key, adapter in read.items() if adapter.tensors["lora_up"].any()}
    assert_equal_deltas({key: read[key] for key in expected if key not in unread},
                        {key: expected[key] for key in expected if key not in unread})  # fmt: skip
    assert "4 modules of the last layer, which SDXL does not read, are left out" in capsys.readouterr().err
    run = train(**STAND, init_lora=str(file), output_dir=str(tmp_path / "unet"))
    assert {component for component, _ in read_lora(run / "unet.safetensors").adapters} == {"unet"}
    assert "also holds text_encoder and text_encoder_2, which are not trained" in capsys.readouterr().err


def test_a_continued_training_resumes_and_refuses_another_file(train, tmp_path):
    _, models = tiny_with_lora(4, 3, "attention", ("unet",), layers=1, **PATTERNS)
    file = kohya_file(tmp_path, models)
    whole = train(init_lora=str(file), max_train_steps=2, output_dir=str(tmp_path / "whole"))
    train(init_lora=str(file), max_train_steps=1)
    parts = train(init_lora=str(file), max_train_steps=2)
    one, two = (load_file(run / "checkpoint-2" / "lora_state.safetensors") for run in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    other = load_file(file)
    save_file({name: tensor + 1 for name, tensor in other.items()}, tmp_path / "kohya.safetensors")
    with pytest.raises(CheckpointError, match="init_lora"):
        train(init_lora=str(file), max_train_steps=3)


def test_a_file_that_cannot_go_on_is_refused_in_words(train, tmp_path, tiny_base):
    _, models = tiny_with_lora(4, 3, components=("unet",))
    lora = kohya_file(tmp_path, models)
    _, doras = tiny_with_lora(4, 3, components=("unet",), use_dora=True)
    dora = diffusers_file(tmp_path / "dora", doras)
    old = tmp_path / "sd15.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_down.weight": torch.ones(4, 320), f"{name}.lora_up.weight": torch.ones(320, 4)}, old)
    larger = tmp_path / "larger.safetensors"
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_down.weight": torch.ones(4, 999), f"{name}.lora_up.weight": torch.ones(32, 4)}, larger)
    texts = kohya_file(tmp_path / "texts", tiny_with_lora(4, 3, components=("text_encoder_2",))[1])
    refusals = [
        (lora, "dora", "is a lora, but a dora is to be trained: leave out"),
        (dora, "lora", "is a dora, but a lora is to be trained: add --use_dora"),
        (lora, "lokr", "is a lora, but a lokr"),
        (old, "lora", "a LoRA for another model, SD 1.5 perhaps"),
        (larger, "lora", r"changes 32x999, this base's weight is 32x32"),
        (texts, "lora", "has nothing for unet: add --train_text_encoder"),
        (tiny_base / "unet" / "diffusion_pytorch_model.safetensors", "lora", "is not a LoRA"),
        (tmp_path / "nowhere.safetensors", "lora", "is not there"),
    ]
    for file, kind, words in refusals:
        with pytest.raises(ValueError, match=words):
            begun(file, kind)
    with pytest.raises(ConfigError, match="add --use_dora"):
        train(**STAND, init_lora=str(dora))
    with pytest.raises(ConfigError, match="this base's weight is 32x32"):
        train(**STAND, init_lora=str(larger))
    assert nothing_is_cached(tmp_path), "that is known before anything is cached"
    start = read_warm_start(texts, "lora", ["unet", "text_encoder_2"])
    assert list(start.adapters) == ["text_encoder_2"] and "unet: nothing in init_lora, it starts" in start.notes[0]
    for settings in ({"block_ranks": ("up=2",)}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}):
        with pytest.raises(ConfigError, match=f"leave out {next(iter(settings))}"):
            flat_train_config(output_dir="x", train_data_dir="y", init_lora="z", **settings)
