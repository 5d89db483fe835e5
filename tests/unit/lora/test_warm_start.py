"""How an adapter begins: as a LoRA file of any layout, as the base's main directions; and what drops out of it."""

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
from sdxl_lora.lora.state import adapter_layers, load_lora_state, lora_state
from sdxl_lora.lora.targets import exactly
from sdxl_lora.lora.warm_start import layers_of, load_adapters, lokr_factor, read_warm_start
from sdxl_lora.run.events import read_events
from sdxl_lora.training.checks import check_device
from tests.helpers.adapters import COMPONENTS, kohya_file, largest_difference, model_adapters, outputs, tiny_with_lora
from tests.helpers.configs import flat_train_config

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
    [{"use_dora": True}, {"kind": "loha"}, {"kind": "lokr"}, {"kind": "lokr", "lokr_factor": 4}],
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
    _, models = tiny_with_lora(4, 3, "attention+ff", ("unet",), **PATTERNS)
    file = kohya_file_of_diffusers_names_and_many_ranks(tmp_path, models)
    run = train(**STAND, init_lora=str(file), target_modules="attention", rank=2)
    for name in ("run.safetensors", "pytorch_lora_weights.safetensors"):
        assert_equal_deltas(read_lora(run / name).adapters, adapters_of(models))
    state = load_file(run / "checkpoint-1" / "lora_state.safetensors")
    for part, rank in ((".to_q.", 7), (".to_k.", 4)):
        assert {tensor.shape[0] for name, tensor in state.items() if f"{part}lora_A" in name} == {rank}


def test_text_encoders_go_on_where_they_train_and_are_missed_where_they_do_not(train, tmp_path, capsys):
    _, models = tiny_with_lora(4, 3)
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
    assert "also holds text_encoder and text_encoder_2, which do not train" in capsys.readouterr().err


def test_a_continued_training_resumes_and_refuses_another_file(train, tmp_path):
    _, models = tiny_with_lora(4, 3, "attention", ("unet",), **PATTERNS)
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
        (lora, "dora", "is a lora, but a dora is to train: leave out"),
        (dora, "lora", "is a dora, but a lora is to train: add --use_dora"),
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
    assert not (tmp_path / "cache").exists(), "that is known before anything is cached"
    start = read_warm_start(texts, "lora", ["unet", "text_encoder_2"])
    assert list(start.adapters) == ["text_encoder_2"] and "unet: nothing in init_lora, it begins anew" in start.notes[0]
    for settings in ({"block_ranks": ("up=2",)}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}):
        with pytest.raises(ConfigError, match=f"leave out {next(iter(settings))}"):
            flat_train_config(output_dir="x", train_data_dir="y", init_lora="z", **settings)


@pytest.mark.parametrize(
    "init, options",
    [("pissa", {}), ("pissa_niter_4", {"rank_pattern": {"to_k": 3}}), ("olora", {"use_rslora": True})],
)
def test_what_began_as_a_part_of_the_base_is_saved_as_a_change_of_the_whole_base(tmp_path, init, options):
    untrained = outputs(tiny_sdxl())
    begun = tiny_sdxl()
    base = {name: tensor.clone() for name, tensor in begun.unet.state_dict().items()}
    for component in COMPONENTS:
        add_lora(getattr(begun, component), 4, 2, targets="attention+ff", init=init, **options)
    assert largest_difference(outputs(begun), untrained) < 1e-5
    layer = adapter_layers(begun.unet, "unet")["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    original = base["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    lost = (original - layer.get_base_layer().weight).norm() / original.norm()
    assert lost > 0.1, "the base has really given something up"

    trained, models = tiny_with_lora(4, 2, "attention+ff", init=init, **options)
    expected = outputs(trained)
    assert largest_difference(expected, untrained) > 1e-2
    pipeline = tiny_sdxl()
    for path in write_lora_files(tmp_path, "cat", models, "fp32"):
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
        assert largest_difference(outputs(pipeline), expected) < 1e-4
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_in_half_precision_the_change_is_right_to_the_rounding_of_the_base(init):
    unet = tiny_sdxl().unet.to(torch.bfloat16)
    base = {name: tensor.clone().float() for name, tensor in unet.state_dict().items()}
    add_lora(unet, 4, 2, init=init)
    for name, layer in adapter_layers(unet, "unet").items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.data += 0.01 * torch.randn(down.shape, generator=torch.Generator().manual_seed(0))
        trained = layer.get_base_layer().weight.float() + layer.scaling["default"] * up @ down
        saved = base[f"{name}.weight"] + delta(model_adapters(unet, "unet")[name])
        assert (trained - saved).norm() < 0.003 * base[f"{name}.weight"].norm(), name


def test_another_machines_decomposition_gives_way_to_the_saved_one():
    trained = tiny_sdxl()
    add_lora(trained.unet, 4, 2, init="pissa")
    state = lora_state(trained.unet)
    signs = {name: tensor * (-1 if name.endswith((".lora_down", ".lora_up")) else 1) for name, tensor in state.items()}
    halves = {name: tensor / 2 if name.endswith("lora_up") else tensor for name, tensor in signs.items()}
    for saved, part in ((signs, 1.0), (halves, 0.5)):
        model = tiny_sdxl().unet
        add_lora(model, 4, 2, init="pissa")
        load_lora_state(model, saved)
        for name, layer in adapter_layers(model, "unet").items():
            there = adapter_layers(trained.unet, "unet")[name]
            given_up = there.scaling["default"] * there.lora_B["default"].weight @ there.lora_A["default"].weight
            expected = there.get_base_layer().weight + (1 - part) * given_up
            torch.testing.assert_close(layer.get_base_layer().weight, expected, atol=1e-5, rtol=1e-4)


def test_a_run_of_pissa_resumes_exactly_and_its_file_is_the_change(train, tmp_path):
    settings = {"init_lora_weights": "pissa_niter_2", "learning_rate": 1e-2}
    whole = train(**settings, max_train_steps=2, output_dir=str(tmp_path / "whole"))
    train(**settings, max_train_steps=1)
    parts = train(**settings, max_train_steps=2)
    one, two = (load_file(run / "checkpoint-2" / "lora_state.safetensors") for run in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    pipeline = tiny_sdxl()
    untrained = outputs(pipeline)[0]
    pipeline.load_lora_weights(parts, weight_name="run.safetensors")
    here = tiny_sdxl()
    here.unet = train.trained.model.unet
    assert largest_difference(outputs(pipeline)[:1], outputs(here)[:1]) < 1e-4
    assert largest_difference(outputs(pipeline)[:1], [untrained]) > 1e-2
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        train(max_train_steps=3)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_other_starts_are_no_change(init):
    begun = tiny_sdxl()
    first = add_lora(begun.unet, 4, 2, init=init)[0]
    assert largest_difference(outputs(begun), outputs(tiny_sdxl())) < 1e-4
    assert not torch.equal(first, add_lora(tiny_sdxl().unet, 4, 2)[0])


def test_an_unknown_start_is_refused():
    for init in ("pisa", "pissa_niter_0", "eva", "True"):
        with pytest.raises(ConfigError, match="kaiming, gaussian, orthogonal, pissa"):
            flat_train_config(output_dir="x", train_data_dir="y", init_lora_weights=init)
    with pytest.raises(ConfigError, match="does not go with use_dora"):
        flat_train_config(output_dir="x", train_data_dir="y", init_lora_weights="olora", use_dora=True)
    with pytest.raises(ConfigError, match=r"lora_dropout \(use rank_dropout\), use_dora belong to adapter lora"):
        flat_train_config(output_dir="x", train_data_dir="y", adapter="loha", lora_dropout=0.1, use_dora=True)


@pytest.mark.parametrize("targets", ["attention", "all-linear+conv"])
def test_dropped_ranks_and_modules_by_hand(targets):
    """With half of the ranks dropped a layer gives twice the sum over the others, for each picture its own."""
    unet = tiny_with_lora(4, 4, targets, ("unet",), rank_dropout=0.5)[1]["unet"].train()
    for layer in adapter_layers(unet, "unet").values():
        down, up = layer.lora_A["default"], layer.lora_B["default"]
        shape = (64, down.weight.shape[1], *([5, 5] if down.weight.dim() == 4 else []))
        inputs = torch.randn(shape)
        whole, kept = down.eval()(inputs), down.train()(inputs)
        ratio = (kept / whole).flatten(2) if down.weight.dim() == 4 else (kept / whole)[..., None]
        assert torch.isclose(ratio, ratio[..., :1]).all(), "a rank is dropped as a whole"
        ratio = ratio[..., 0].round(decimals=3)
        assert set(ratio.unique().tolist()) == {0.0, 2.0} and 0.3 < (ratio == 0).float().mean() < 0.7
        assert len(ratio.unique(dim=0)) > 5 and up(kept) is not None
    unet = tiny_with_lora(4, 4, targets, ("unet",), module_dropout=0.3)[1]["unet"].train()
    torch.manual_seed(0)
    dropped = []
    for layer in adapter_layers(unet, "unet").values():
        up = layer.lora_B["default"]
        inputs = torch.randn(2, up.weight.shape[1], *([5, 5] if up.weight.dim() == 4 else []))
        whole = up.eval()(inputs)
        up.train()
        for _ in range(20):
            result = up(inputs)
            assert torch.equal(result, whole) or not result.any()
            dropped.append(not result.any())
    assert abs(sum(dropped) / len(dropped) - 0.3) < 4 * (0.21 / len(dropped)) ** 0.5


@pytest.mark.parametrize("settings", [{"adapter": "lokr"}, {"gradient_checkpointing": True}], ids=str)
def test_a_run_that_drops_resumes_exactly(train, tmp_path, settings):
    settings |= {"rank_dropout": 0.2, "module_dropout": 0.2, "train_batch_size": 2}
    whole = train(**settings, max_train_steps=2, output_dir=str(tmp_path / "whole"))
    train(**settings, max_train_steps=1)
    parts = train(**settings, max_train_steps=2)
    one, two = (load_file(run / "checkpoint-2" / "lora_state.safetensors") for run in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    if "adapter" in settings:
        return
    losses = [[step["loss"] for step in read_events(whole / "events.jsonl", "step")]]
    for dropout in ({"rank_dropout": 0.0}, {"module_dropout": 0.0}):
        plain = train(**{**settings, **dropout, "max_train_steps": 2}, output_dir=str(tmp_path / next(iter(dropout))))
        losses.append([step["loss"] for step in read_events(plain / "events.jsonl", "step")])
    assert len({tuple(of_run) for of_run in losses}) == 3, "each has its effect"


def test_layers_that_drop_out_in_a_branch_are_not_for_several_processes():
    config = flat_train_config(output_dir="x", train_data_dir="y", adapter="loha", module_dropout=0.1)
    check_device(config, 1, "cpu")
    with pytest.raises(ConfigError, match="module_dropout of a loha is for one process"):
        check_device(config, 2, "cpu")
