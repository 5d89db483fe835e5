"""Adapters on the tiny base: which layers, which dtype, which start; their state out and in."""

import pytest
import torch
from safetensors.torch import load_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import adapter_layers, adapter_parameters, load_lora_state, lora_state
from sdxl_lora.lora.targets import target_modules
from sdxl_lora.lora.warm_start import WarmStart
from sdxl_lora.training.model import add_adapters
from tests.helpers.adapters import COMPONENTS, largest_difference, model_adapters, outputs, tiny_with_lora
from tests.helpers.configs import flat_train_config
from tests.helpers.marks import slow

ATTENTION = {"to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"}
FEED_FORWARD = {"ff.net.0.proj", "ff.net.2", "mlp.fc1", "mlp.fc2"}
OTHER_LINEAR = {"proj_in", "proj_out", "time_emb_proj"}
CONV = {"conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"}
TARGET_ENDINGS = {
    "attention": ATTENTION,
    "attention+ff": ATTENTION | FEED_FORWARD,
    "all-linear": ATTENTION | FEED_FORWARD | OTHER_LINEAR,
    "all-linear+conv": ATTENTION | FEED_FORWARD | OTHER_LINEAR | CONV,
    r"attn2\.to_[kv]$|self_attn\.q": {"to_k", "to_v", "q_proj"},
}


@pytest.mark.parametrize("targets", TARGET_ENDINGS)
def test_targets_choose_exactly_the_layers_they_name(targets):
    pipeline = tiny_sdxl()
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        layers = [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
        layers = [n for n in layers if not n.startswith(("conv_in", "conv_out", "time_embedding", "add_embedding"))]
        expected = [n for n in layers if any(n.endswith(f".{end}") for end in TARGET_ENDINGS[targets])]
        if targets.startswith("attn2"):
            expected = [n for n in expected if ".attn1." not in n]
        assert target_modules(model, targets) == expected
        add_lora(model, 2, 2, targets=targets)
        assert len(model_adapters(model, "unet" if model is pipeline.unet else "text_encoder")) == len(expected)


def test_only_float32_adapter_weights_train_and_start_as_no_change():
    base = outputs(tiny_sdxl())
    pipeline = tiny_sdxl()
    parameters = add_lora(pipeline.unet, 4, 8)
    trainable = [p for p in pipeline.unet.parameters() if p.requires_grad]
    assert [id(p) for p in trainable] == [id(p) for p in parameters]
    assert largest_difference(base, outputs(pipeline)) == 0

    half = tiny_sdxl().unet.to(torch.bfloat16)
    assert {p.dtype for p in add_lora(half, 4, 8)} == {torch.float32}
    assert {p.dtype for p in half.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_seed_decides_the_start_and_the_callers_random_state_stays():
    def start(seed):
        model = tiny_sdxl().unet
        torch.manual_seed(99)
        add_lora(model, 4, 4, seed=seed)
        return lora_state(model), torch.rand(1).item()

    (first, drawn), (again, drawn_again), (other, _) = start(1), start(1), start(2)
    torch.manual_seed(99)
    assert drawn == drawn_again == torch.rand(1).item()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_strength_is_alpha_over_rank_and_over_its_root_with_rslora():
    for options, expected in (({}, 3 / 4), ({"use_rslora": True}, 3 / 2)):
        _, models = tiny_with_lora(4, 3, components=("unet",), **options)
        assert {a.scale for a in model_adapters(models["unet"], "unet").values()} == {expected}
    patterns = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 5}}
    _, models = tiny_with_lora(4, 3, components=("unet",), **patterns)
    for name, adapter in model_adapters(models["unet"], "unet").items():
        assert (adapter.rank, adapter.scale) == ((2, 2.5) if name.endswith("to_k") else (4, 0.75))


def test_state_restores_a_model_exactly():
    pipeline, models = tiny_with_lora(4, 3, "attention+ff", use_dora=True)
    fresh = tiny_sdxl()
    for component, model in models.items():
        state = lora_state(model)
        assert {t.dtype for t in state.values()} == {torch.float32}
        add_lora(getattr(fresh, component), 4, 3, targets="attention+ff", use_dora=True)
        load_lora_state(getattr(fresh, component), state)
    assert largest_difference(outputs(pipeline), outputs(fresh)) == 0


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    model = tiny_sdxl().unet
    add_lora(model, 4, 4)
    before = lora_state(model)
    first, second, *_ = before
    bad = {name: tensor + 1 for name, tensor in before.items() if name != first}
    bad |= {second: torch.zeros(1, 1), "elsewhere.lora_A.weight": torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        load_lora_state(model, bad)
    assert f"missing {first}" in str(error.value)
    assert "unexpected elsewhere.lora_A.weight" in str(error.value)
    assert f"{second} has shape (1, 1)" in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in lora_state(model).items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "attn3"}, "matches no linear or convolution layer"),
        ({"targets": "conv"}, "matches conv_in, conv_out: LoRA files with these layers fail"),
        ({"targets": "attn1("}, "nor a regular expression"),
        ({"rank": 0}, "rank >= 1"),
        ({"alpha": 0}, "alpha > 0"),
        ({"dropout": 1.0}, "dropout < 1"),
        ({"init": "pissa", "targets": "all-linear+conv"}, "pissa is for linear layers, .*conv1 is a convolution"),
        ({"init": "olora", "use_dora": True}, "does not go with use_dora"),
        ({"kind": "oft"}, "must be one of lora, loha, lokr"),
        ({"kind": "loha", "use_dora": True}, "belong to kind lora"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_changes(arguments, message):
    model = tiny_sdxl().unet
    with pytest.raises(ValueError, match=message):
        add_lora(model, **{"rank": 4, "alpha": 4, **arguments})
    assert all(p.requires_grad for p in model.parameters())


def test_a_second_adapter_and_a_missing_one_are_refused():
    model = tiny_sdxl().unet
    with pytest.raises(ValueError, match="has no adapter to save"):
        model_adapters(model, "unet")
    add_lora(model, 4, 4)
    with pytest.raises(ValueError, match="has an adapter already"):
        add_lora(model, 4, 4)


@pytest.mark.parametrize(
    "init, options",
    [*slow(("pissa", {})), ("pissa_niter_4", {"rank_pattern": {"to_k": 3}}), *slow(("olora", {"use_rslora": True}))],
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


@pytest.mark.parametrize("init", ["pissa", *slow("olora")])
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


def test_a_run_of_pissa_resumes_exactly_and_its_file_is_the_change(train, two_layers, tmp_path):
    settings = {
        "pretrained_model_name_or_path": str(two_layers),
        "init_lora_weights": "pissa_niter_2",
        "learning_rate": 1e-2,
    }
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


def test_lokr_factor_is_the_size_of_the_first_factors():
    def trained(**settings):
        config = flat_train_config(output_dir="x", train_data_dir="y", adapter="lokr", **settings)
        models = {"unet": tiny_sdxl().unet}
        add_adapters(models, config, WarmStart(), print, "kaiming")
        adapters = model_adapters(models["unet"], "unet").values()
        first = {tuple(adapter.tensors["lokr_w1"].shape) for adapter in adapters}
        return first, sum(parameter.numel() for parameter in adapter_parameters(models["unet"]).values())

    of_four, by_default = trained(lokr_factor=4), trained()
    assert of_four[0] == {(4, 4)} != by_default[0]
    assert of_four[1] > by_default[1], "what the first factors lose, the second gain"
    with pytest.raises(ConfigError, match="lokr_factor belongs to adapter lokr: leave it out with lora"):
        flat_train_config(output_dir="x", train_data_dir="y", lokr_factor=4)
    with pytest.raises(ConfigError, match=r"init_lora brings its own ranks, .*: leave out lokr_factor"):
        flat_train_config(output_dir="x", train_data_dir="y", adapter="lokr", init_lora="a", lokr_factor=4)
