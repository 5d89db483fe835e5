"""Frozen weights in 8 or 4 bits, with a scale for each output's row or each block of 64 values.

int8 and fp8 (e4m3) hold a byte per value and a float32 scale per row; nf4 (arXiv:2305.14314, by bitsandbytes) half a
byte and a bfloat16 scale per block. Products are computed in the input's precision from a dense copy of the weight,
which is made anew in the backward pass because autograd would keep it. Those of int8 and fp8 can also be computed in
8 bits (arXiv:2208.07339): each row of the input, or of the output's gradient in the backward pass, is then rounded
with a scale of its own. Independent of LoRA.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

KINDS = ("int8", "fp8", "nf4")
BLOCK = 64  # values that share a scale in nf4
LARGEST = {"int8": 127.0, "fp8": 448.0}  # of the codes
CODE_DTYPE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class PackedWeight(NamedTuple):
    """Frozen (out, in) weight: dense (kind "dense", no scales), or codes and scales.

    Attributes:
        in_8_bits: products of int8 and fp8 are computed in 8 bits too.
    """

    codes: Tensor
    scales: Tensor | None
    kind: str
    in_8_bits: bool = False

    def product(self, rows: Tensor, bias: Tensor | None, width: int, into: Tensor | None = None) -> Tensor:
        """Return rows (N, in) W^T + bias (out,): (N, out) in the precision of the rows.

        Args:
            width: out.
            into: tensor for the result; None for a new one.
        """
        bias = bias if bias is None else bias.to(rows.dtype)
        if self.in_8_bits and can_multiply(rows, self.codes):
            assert self.scales is not None
            out = MULTIPLY[self.kind](rows, self.codes.t(), self.scales.t())
            out = (out if bias is None else out.add_(bias)).to(rows.dtype)
            return out if into is None else into.copy_(out)
        dense = self.dense((width, rows.shape[1]), rows.dtype)
        if into is None:
            return nn.functional.linear(rows, dense, bias)
        return torch.mm(rows, dense.t(), out=into) if bias is None else torch.addmm(bias, rows, dense.t(), out=into)

    def input_gradient(self, gradient: Tensor, width: int) -> Tensor:
        """Return gradient (N, out) W: (N, in) in the gradient's precision; `width` is in."""
        if self.in_8_bits and can_multiply(gradient, self.codes):
            return self._input_gradient_in_8_bits(gradient)
        return gradient.mm(self.dense((gradient.shape[1], width), gradient.dtype))

    def add_input_gradient(self, gradient: Tensor, to: Tensor) -> None:
        """Add `input_gradient` to a tensor (N, in)."""
        if self.in_8_bits and can_multiply(gradient, self.codes):
            to += self._input_gradient_in_8_bits(gradient)
        else:
            to.addmm_(gradient, self.dense((gradient.shape[1], to.shape[1]), gradient.dtype))

    def _input_gradient_in_8_bits(self, gradient: Tensor) -> Tensor:
        assert self.scales is not None  # applied to the gradient before rounding, because they differ along the sum
        columns = self.codes.t().contiguous().t()  # the layout that 8-bit products on GPUs need
        return MULTIPLY[self.kind](gradient * self.scales.t(), columns, None).to(gradient.dtype)

    def dense(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return the weight (out, in) in `dtype`."""
        if self.scales is None:
            return self.codes.to(dtype)
        if self.kind == "nf4":
            import bitsandbytes  # noqa: F401 - registers the operation; takes a second

            scales = self.scales.float()
            return torch.ops.bitsandbytes.dequantize_4bit(self.codes, scales, BLOCK, "nf4", shape, dtype)
        return self.codes.to(dtype) * self.scales.to(dtype)


def pack(weight: Tensor, kind: str) -> PackedWeight:
    """Return codes and scales of an (out, in) weight. Rows of zeros stay zeros."""
    if kind == "nf4":
        import bitsandbytes  # noqa: F401

        codes, scales = torch.ops.bitsandbytes.quantize_4bit(weight.contiguous(), BLOCK, "nf4", torch.uint8)
        return PackedWeight(codes, scales.bfloat16(), kind)
    values = weight.float()
    scales = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST[kind]
    values = values / scales
    codes = (values.round() if kind == "int8" else values).to(CODE_DTYPE[kind])
    return PackedWeight(codes, scales, kind)


def can_multiply(rows: Tensor, codes: Tensor) -> bool:
    """Return whether GPUs support 8-bit products of these shapes; other devices follow the same rule."""
    if codes.dtype == torch.int8:
        return len(rows) > 16 and not any(size % 8 for size in codes.shape)
    return not any(size % 16 for size in codes.shape)


def multiply_int8(rows: Tensor, codes: Tensor, scales: Tensor | None) -> Tensor:
    """Return rows (N, K) times codes (K, M) times scales (1, M): (N, M) in float32, each row rounded to 255 steps."""
    steps = _steps(rows, "int8")
    out = torch._int_mm((rows / steps).round_().to(torch.int8), codes).float().mul_(steps)
    return out if scales is None else out.mul_(scales)


def multiply_fp8(rows: Tensor, codes: Tensor, scales: Tensor | None) -> Tensor:
    """Return the same product with rows rounded to e4m3: in bfloat16, or in float32 for float32 rows on a CPU."""
    steps = _steps(rows, "fp8")
    if scales is None:
        scales = steps.new_ones(1, codes.shape[1])
    is_exact = rows.device.type == "cpu" and rows.dtype == torch.float32  # GPUs scale rows only in bfloat16
    dtype = torch.float32 if is_exact else torch.bfloat16
    return torch._scaled_mm((rows / steps).to(CODE_DTYPE["fp8"]), codes, scale_a=steps, scale_b=scales, out_dtype=dtype)


def _steps(rows: Tensor, kind: str) -> Tensor:
    """Return the factor of each row's codes: (N, 1) float32."""
    return rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / LARGEST[kind]


MULTIPLY = {"int8": multiply_int8, "fp8": multiply_fp8}


def has_8_bit_products(device: torch.device, kind: str) -> bool:
    """Return whether a device multiplies matrices of int8, or of fp8 with a scale for each row."""
    if device.type == "cuda":
        least = (7, 5) if kind == "int8" else (8, 9)
        return not torch.version.hip and torch.cuda.get_device_capability(device) >= least
    return device.type == "cpu"


class QuantizedLinear(nn.Linear):
    """Frozen linear layer with a packed weight; `weight` is a dense copy in `dtype`, made on each access."""

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        kind: str,
        device: torch.device | None = None,
        in_8_bits: bool = False,
        home: torch.device | None = None,
    ):
        nn.Module.__init__(self)
        self.in_8_bits = in_8_bits
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        self.dtype = linear.weight.dtype
        packed = pack(linear.weight.detach().to(device), kind)
        assert packed.scales is not None
        self.register_buffer("codes", packed.codes.to(home))
        self.register_buffer("scales", packed.scales.to(home))
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override] # a parameter in nn.Linear
        return self.packed.dense((self.out_features, self.in_features), self.dtype)

    @property
    def packed(self) -> PackedWeight:
        return PackedWeight(self.codes, self.scales, self.kind, self.in_8_bits)

    def forward(self, x: Tensor) -> Tensor:
        return _FrozenProduct.apply(x.to(product_dtype(x)), self.bias, self.out_features, *self.packed)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of products with x: autocast's where that is on."""
    device = x.device.type
    is_cast = not x.is_meta and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else x.dtype


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, width, codes, scales, kind, in_8_bits):
        ctx.save_for_backward(codes, scales)
        ctx.how, ctx.shape = (kind, in_8_bits), x.shape
        out = PackedWeight(codes, scales, kind, in_8_bits).product(x.reshape(-1, x.shape[-1]), bias, width)
        return out.view(*x.shape[:-1], width)

    @staticmethod
    def backward(ctx, gradient):
        weight = PackedWeight(*ctx.saved_tensors, *ctx.how)
        x_gradient = weight.input_gradient(gradient.reshape(-1, gradient.shape[-1]), ctx.shape[-1])
        return x_gradient.view(ctx.shape), None, None, None, None, None, None


def packed_weight(layer: nn.Module) -> PackedWeight | None:
    """Return the weight of a frozen linear layer; None for other layers."""
    if isinstance(layer, QuantizedLinear):
        return layer.packed
    return PackedWeight(layer.weight, None, "dense") if type(layer) is nn.Linear else None


def packable(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return the linear layers inside the model's attention modules, each with its parent and its name there.

    They are nine tenths of SDXL's weights; convolutions and the timestep's layers stay unpacked. An adapted layer is
    listed under its adapter.
    """
    return [
        (parent, child_name, child)
        for name, parent in model.named_modules()
        if ".attentions." in f".{name}." and ".lora_" not in name
        for child_name, child in parent.named_children()
        if type(child) is nn.Linear
    ]


def quantize_linears(
    model: nn.Module,
    kind: str,
    device: torch.device | None = None,
    in_8_bits: bool = False,
    home: torch.device | None = None,
) -> int:
    """Pack all `packable` layers and return their number.

    Args:
        device: where each layer is packed.
        home: where its packed weight goes then; None for that device.
        in_8_bits: compute products of int8 and fp8 in 8 bits too.
    """
    found = packable(model)
    for parent, child_name, child in found:
        setattr(parent, child_name, QuantizedLinear(child, kind, device, in_8_bits, home))
    return len(found)


def packed_bytes(shape: tuple[int, int], kind: str) -> int:
    """Return the bytes of a packed (out, in) weight."""
    values = shape[0] * shape[1]
    return values // 2 + 2 * -(-values // BLOCK) if kind == "nf4" else values + 4 * shape[0]
