"""Packed weights: how near they come, what they hold, what autograd keeps; a run on them, and its LoRA without them."""

import pytest
import torch
from torch import nn

from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.models.loading import Base, load_unet
from sdxl_lora.performance.quantization import KINDS, PackedWeight, QuantizedLinear, pack, quantize_linears
from sdxl_lora.run.events import read_events
from sdxl_lora.tools.__main__ import main
from tests.helpers.adapters import model_adapters
from tests.helpers.marks import slow
from tests.helpers.runs import assert_resumes_exactly, column, first_batch, weights_of

# Of normal weights: mean error relative to mean size. A uniform step d errs by d / 4 on average, hence int8's.
ERROR = {"int8": 0.009, "fp8": 0.027, "nf4": 0.095}
BYTES = {"int8": 1 + 4 / 256, "fp8": 1 + 4 / 256, "nf4": 0.5 + 2 / 64}


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_weight_is_near_and_small(kind):
    torch.manual_seed(0)
    weight = torch.randn(128, 256) * torch.linspace(0.01, 3, 128)[:, None]
    weight[5] = 0
    packed = pack(weight, kind)
    dense = packed.dense(weight.shape, torch.float32)
    rows = [row for row in range(128) if row != 5]
    error = ((dense - weight)[rows].abs().mean(1) / weight[rows].abs().mean(1)).max()
    assert 0.3 * ERROR[kind] < error < 1.5 * ERROR[kind]
    assert not dense[5].any()
    held = packed.codes.numel() * packed.codes.element_size() + packed.scales.numel() * packed.scales.element_size()
    assert held == weight.numel() * BYTES[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_computes_with_its_dense_weight_and_keeps_none(kind, dtype):
    torch.manual_seed(0)
    layer = QuantizedLinear(nn.Linear(64, 128, dtype=dtype), kind)
    x = torch.randn(5, 7, 64, dtype=dtype, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    assert {t.dtype for t in kept} <= {torch.int8, torch.float8_e4m3fn, torch.uint8, torch.float32, torch.bfloat16}
    assert sum(t.numel() * t.element_size() for t in kept) < 64 * 128 * 1.2
    out.float().sum().backward()
    torch.testing.assert_close(out, nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(x.grad, (torch.ones(5, 7, 128, dtype=dtype) @ layer.weight))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_transformers_linear_layers_are_packed(tiny_base, kind):
    unet = load_unet(Base(str(tiny_base)), torch.float32)
    dense = {name: m.weight.clone() for name, m in unet.named_modules() if isinstance(m, nn.Linear)}
    count = quantize_linears(unet, kind)
    packed = {name: m for name, m in unet.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(packed) == count and set(packed) == {name for name in dense if ".attentions." in name}
    for name, layer in packed.items():
        error = (layer.weight - dense[name]).abs().mean() / dense[name].abs().mean()
        assert error < 2 * ERROR[kind], name
    names = [name for name in dense if name.endswith("attn1.to_q")]
    assert names and add_lora(unet, 4, 4)
    assert PackedWeight(dense[names[0]], None, "dense").dense((1, 1), torch.float32) is dense[names[0]]


@pytest.mark.parametrize("kind", ["int8", *slow("fp8", "nf4")])
def test_a_run_trains_draws_saves_and_resumes_on_a_packed_base(train, tmp_path, kind):
    settings = {
        "base_precision": kind, "validation_prompt": ("a cat",), "num_validation_images": 1,
        "validation_inference_steps": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    dense = train(max_train_steps=3, output_dir=str(tmp_path / "dense"))
    whole = assert_resumes_exactly(train, tmp_path, **settings)
    assert weights_of(whole, 3).keys() == weights_of(dense, 3).keys()
    assert column(whole, "loss") == pytest.approx(column(dense, "loss"), rel=0.05)
    assert list((whole / "samples").glob("*.png"))


# Between the UNet that trained and the dense one with its LoRA: of the output's norm, 0.3, 1.6 and 5.5 % measured
MERGE_ERROR = {"int8": 0.005, "fp8": 0.03, "nf4": 0.1}


@pytest.mark.parametrize("kind", ["nf4", *slow("int8", "fp8")])
def test_a_lora_of_a_packed_base_merges_into_the_dense_one(train, two_layers, tmp_path, kind):
    """The file holds the adapter bit for bit; merged, it differs from what trained by what packing the base changes."""
    settings = {"max_train_steps": 4, "learning_rate": 3e-2, "base_precision": kind, "lora_alpha": 8.0}
    run = train(pretrained_model_name_or_path=str(two_layers), **settings)
    written = {name: adapter for (_, name), adapter in read_lora(run / "run.safetensors").adapters.items()}
    adapters = model_adapters(train.trained.model.unet, "unet")
    assert written.keys() == adapters.keys()
    for key, adapter in adapters.items():
        assert written[key].scale == adapter.scale
        assert all(torch.equal(written[key].tensors[name], tensor) for name, tensor in adapter.tensors.items()), key

    batch = first_batch(train.trained)

    @torch.no_grad()
    def output(unet):
        conditions = {"text_embeds": batch["pooled_embeds"], "time_ids": batch["time_ids"]}
        return unet.eval()(
            batch["latents"], batch["timesteps"], batch["prompt_embeds"], added_cond_kwargs=conditions
        ).sample

    def dense_base():
        return load_unet(Base(str(two_layers)), torch.float32)

    def distance(one, other):
        return ((one - other).norm() / other.norm()).item()

    trained = output(train.trained.model.unet)
    assert main(["merge", str(run / "run.safetensors"), str(two_layers), str(tmp_path / "merged")]) == 0
    assert distance(output(load_unet(Base(str(tmp_path / "merged")), torch.float32)), trained) < MERGE_ERROR[kind]
    assert distance(output(dense_base()), trained) > 4 * MERGE_ERROR[kind], "it must have learned something"

    packed = dense_base()
    quantize_linears(packed, kind)
    rounded = {name: layer.weight for name, layer in packed.named_modules() if isinstance(layer, QuantizedLinear)}
    exact = dense_base()
    for name, layer in exact.named_modules():
        if name in rounded:
            layer.weight.data = rounded[name] + (delta(written[name]) if name in written else 0)
    assert distance(output(exact), trained) < 1e-5, "but for the rounding of the base it is the same"


def test_products_in_8_bits_err_by_half_a_step_of_a_row_at_most():
    """Forward, and for the input's gradient; rows of all sizes, one of zeros, one with an outlier."""
    torch.manual_seed(0)
    packed = pack(torch.randn(48, 64) * torch.linspace(0.01, 3, 48)[:, None], "int8")._replace(in_8_bits=True)
    dense, bias = packed.dense((48, 64), torch.float32), torch.randn(48)

    def rows(width):
        found = torch.randn(40, width) * torch.logspace(-3, 3, 40)[:, None]
        found[3], found[5, 0] = 0, 100 * found[5].abs().max()
        return found

    x, gradient = rows(64), rows(48)
    cases = [
        (packed.product(x, bias, 48), x @ dense.t() + bias, x, dense.t()),
        (packed.input_gradient(gradient, 64), gradient @ dense, gradient * packed.scales.t(), packed.codes.float()),
    ]
    for ours, exact, rounded, other in cases:
        step = rounded.abs().amax(1, keepdim=True) / 127
        assert ((ours - exact).abs() <= 0.5001 * step * other.abs().sum(0) + 1e-5 * exact.abs()).all()
        typical = [row for row in range(40) if row not in (3, 5)]
        error = (ours - exact)[typical].norm(dim=1) / exact[typical].norm(dim=1)
        assert 1e-3 < error.mean() < 0.01 and error.max() < 0.02 and not (ours - exact)[3].any()
    added = torch.ones(40, 64)
    packed.add_input_gradient(gradient, added)
    torch.testing.assert_close(added, packed.input_gradient(gradient, 64) + 1)
    into = torch.empty(40, 48)
    assert packed.product(x, None, 48, into) is into
    torch.testing.assert_close(into + bias, packed.product(x, bias, 48))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_in_fp8_err_by_three_bits_behind_the_point(dtype):
    """Forward, and for the input's gradient: each value by a sixteenth of itself at most, where it is not tiny."""
    torch.manual_seed(0)
    packed = pack(torch.randn(48, 64) * torch.linspace(0.01, 3, 48)[:, None], "fp8")._replace(in_8_bits=True)
    dense, bias = packed.dense((48, 64), torch.float32), torch.randn(48)
    x, gradient = (torch.randn(40, width) * torch.logspace(-3, 3, 40)[:, None] for width in (64, 48))
    x[3] = gradient[3] = 0
    x, gradient = x.to(dtype), gradient.to(dtype)
    cases = [
        (packed.product(x, bias, 48), x.float() @ dense.t() + bias, x, dense.t()),
        (packed.input_gradient(gradient, 64), gradient.float() @ dense, gradient, dense),
    ]
    for ours, exact, rounded, other in cases:
        assert ours.dtype == dtype
        values, tiny = rounded.float().abs(), rounded.float().abs().amax(1, keepdim=True) * 2**-17
        most = (values / 16 + tiny) @ other.abs() + 0.01 * exact.abs()
        assert ((ours.float() - exact).abs() <= most + 1e-6).all()
        error = (ours.float() - exact).norm(dim=1)[4:] / exact.norm(dim=1)[4:]
        assert 0.005 < error.mean() < 0.04 and not ours.isnan().any()
    added = torch.ones(40, 64, dtype=dtype)
    packed.add_input_gradient(gradient, added)
    torch.testing.assert_close(added, packed.input_gradient(gradient, 64) + 1)


@pytest.mark.parametrize(
    ("kind", "count", "shape"),
    [("int8", 16, (48, 64)), ("int8", 40, (44, 64)), ("int8", 40, (48, 60)), ("fp8", 40, (40, 64))],
)
def test_shapes_that_gpus_do_not_multiply_in_8_bits_stay_dense(kind, count, shape):
    packed = pack(torch.randn(shape), kind)
    x, gradient = torch.randn(count, shape[1]), torch.randn(count, shape[0])
    in_8_bits = packed._replace(in_8_bits=True)
    assert torch.equal(in_8_bits.product(x, None, shape[0]), packed.product(x, None, shape[0]))
    assert torch.equal(in_8_bits.input_gradient(gradient, shape[1]), packed.input_gradient(gradient, shape[1]))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_run_in_8_bits_says_so_learns_alike_and_is_not_mixed_with_others(train, tmp_path, kind):
    settings = {"resolution": 128, "base_precision": kind, "adam_epsilon": 1e-4}
    dense = train(**settings, max_train_steps=2, output_dir=str(tmp_path / "dense"))
    whole = train(**settings, max_train_steps=2, base_products="8bit", output_dir=str(tmp_path / "whole"))
    said = [event["text"] for event in read_events(whole / "events.jsonl", "message")]
    assert any(text.startswith(f"base in {kind}") and text.endswith("are packed, products too") for text in said)
    assert column(whole, "loss") == pytest.approx(column(dense, "loss"), rel=0.01)
    assert column(whole, "loss") != column(dense, "loss")
    with pytest.raises(CheckpointError, match=r"base_products +None +8bit"):
        train(**settings, max_train_steps=3, base_products="8bit", output_dir=str(tmp_path / "dense"))
    with pytest.raises(ConfigError, match="base_products 8bit needs base_precision int8 or fp8, not nf4"):
        train(base_precision="nf4", base_products="8bit")
    with pytest.raises(ConfigError, match="base_products does not go with memory_budget"):
        train(base_precision="fp8", base_products="8bit", memory_budget="8GB")
