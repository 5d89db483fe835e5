"""What an adapter does to a weight, and how to write the same change with other factors.

An `Adapter` is one module's tensors under LyCORIS names plus alpha; `delta` is the weight change it stands for.
Everything is computed in float32. Knows no names of modules and no files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KIND_MARKS = {"lora_down": "lora", "hada_w1_b": "loha", "lokr_w1": "lokr", "lokr_w1_b": "lokr"}


@dataclass(frozen=True)
class Adapter:
    """One module's adapter.

    tensors: by LyCORIS name without `.weight`; of LoRA `lora_down` (r, in[, kh, kw]), `lora_up` (out, r[, 1, 1]),
        optionally `lora_mid` (r, r, kh, kw) and DoRA's `dora_scale` ((out, 1[, 1, 1]) or (1, in[, 1, 1])).
    alpha: the strength is alpha / rank.
    """

    tensors: dict[str, Tensor]
    alpha: float

    @property
    def kind(self) -> str:
        """`lora`, `dora`, `loha` or `lokr`."""
        kind = next((KIND_MARKS[name] for name in KIND_MARKS if name in self.tensors), None)
        if kind is None:
            raise ValueError(f"tensors {', '.join(sorted(self.tensors))} are no LoRA, LoHa or LoKr.")
        return "dora" if kind == "lora" and "dora_scale" in self.tensors else kind

    @property
    def rank(self) -> int | None:
        """Rows of the down factor; None for a LoKr whose two factors are both whole."""
        for name in ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if name in self.tensors:
                return self.tensors[name].shape[0]
        return None

    @property
    def scale(self) -> float:
        return 1.0 if self.rank is None else self.alpha / self.rank


def plain(down: Tensor, up: Tensor, alpha: float) -> Adapter:
    return Adapter({"lora_down": down, "lora_up": up}, float(alpha))


def pad_rank(adapter: Adapter, rank: int, scale: float) -> Adapter:
    """The same change with zeros up to `rank` and `scale` as its alpha / rank (the rest moves into `lora_up`)."""
    down, up = adapter.tensors["lora_down"].float(), adapter.tensors["lora_up"].float()
    extra = rank - down.shape[0]
    down = torch.cat([down, down.new_zeros(extra, *down.shape[1:])])
    up = torch.cat([up, up.new_zeros(up.shape[0], extra, *up.shape[2:])], dim=1)
    if adapter.scale != scale:
        up = up * (adapter.scale / scale)
    return Adapter({**adapter.tensors, "lora_down": down, "lora_up": up}, scale * rank)
