"""Cast of all adapters of a model to the precision of its products in one operation, and of their gradients back.

Casts by each layer are a quarter of the operations of an SDXL step. Independent of any model and config.
"""

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sdxl_lora.performance.quantization import product_dtype


class Adapted(Protocol):
    """One or several layers with a LoRA.

    Attributes:
        cast: the first and the second factors in the precision of the products, those of several layers stacked; set
            from the model's forward until its backward.
    """

    cast: tuple[Tensor, Tensor] | None

    def factors(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the first factors (rank, in) and the second factors (out, rank) of the layers."""

    def forget(self) -> None:
        """Drop `cast` and everything computed from it."""


def cast_at_once(model: nn.Module, adapted: Sequence[Adapted]) -> None:
    """Make the model's forward set `cast` of all `adapted` if the products have another precision than the adapters.

    Args:
        model: the first argument of its forward, or the one named sample, determines the precision of its products
            (see `product_dtype`).
    """
    forward = model.forward

    @functools.wraps(forward)
    def cast_first(*args, **kwargs):
        dtype = product_dtype(args[0] if args else kwargs["sample"])
        groups = [group for one in adapted for group in one.factors()]
        if groups[0][0].dtype == dtype:
            return forward(*args, **kwargs)
        parameters = [parameter for group in groups for parameter in group]
        shapes = [(sum(len(parameter) for parameter in group), *group[0].shape[1:]) for group in groups]
        before = [one.cast for one in adapted]  # of a forward whose backward is still to come
        cast = iter(_CastAll.apply(adapted, dtype, shapes, *parameters))
        for one in adapted:
            one.cast = next(cast), next(cast)
        out = forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            for one, cast_before in zip(adapted, before, strict=True):
                one.cast = cast_before
        return out

    model.forward = cast_first


class _CastAll(torch.autograd.Function):
    """Parameters cast to another precision; autograd, DDP and recomputing see nothing else."""

    @staticmethod
    def forward(ctx, adapted, dtype, shapes, *parameters):
        ctx.adapted, ctx.dtype = adapted, parameters[0].dtype
        ctx.shapes = [parameter.shape for parameter in parameters]
        return cast_into_one(parameters, dtype, shapes)

    @staticmethod
    def backward(ctx, *gradients):
        for one in ctx.adapted:  # all recomputing is done by now
            one.forget()
        return None, None, None, *cast_into_one(gradients, ctx.dtype, ctx.shapes)


def cast_into_one(tensors: Sequence[Tensor], dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
    """Cast tensors of one precision to another in one operation, into one contiguous piece of memory.

    Args:
        shapes: of the returned tensors, which divide all values among them in order.
    """
    flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors), dtype=dtype)
    torch._foreach_copy_(torch._utils._unflatten_dense_tensors(flat, tensors), list(tensors))
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return tuple(part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))
