"""Dropout of a LoRA's ranks and of whole modules, by hooks on PEFT's layers; PEFT has its own for LoHa and LoKr.

Draws from torch's global random state as nn.Dropout does, so that one seed fixes both.
"""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sdxl_lora.lora.state import ADAPTER


def add_dropout(model: nn.Module, rank_dropout: float, module_dropout: float) -> None:
    """Drop random ranks per image and random LoRA modules per forward pass while the model trains.

    Args:
        rank_dropout: share of ranks zeroed, drawn per image; the others are scaled up to compensate.
        module_dropout: share of modules whose LoRA is skipped; the others are not scaled, as in kohya and LyCORIS.
    """
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and ADAPTER in getattr(layer, "lora_A", {}):
            if rank_dropout:
                layer.lora_A[ADAPTER].register_forward_hook(_rank_hook(rank_dropout))
            if module_dropout:
                layer.lora_B[ADAPTER].register_forward_hook(_module_hook(module_dropout))


def _rank_hook(share: float):
    def drop(layer: nn.Module, _, output: Tensor) -> Tensor | None:
        if not layer.training:
            return None
        shape = [1] * output.dim()
        shape[0] = output.shape[0]
        ranks = 1 if isinstance(layer, nn.Conv2d) else -1
        shape[ranks] = output.shape[ranks]
        kept = torch.rand(shape, device=output.device) >= share
        return output * kept.to(output.dtype) / (1 - share)

    return drop


def _module_hook(share: float):
    def drop(layer: nn.Module, _, output: Tensor) -> Tensor | None:
        # a factor, not a branch: all parameters keep a gradient, which distributed training needs
        return output * (torch.rand((), device=output.device) >= share).to(output.dtype) if layer.training else None

    return drop
