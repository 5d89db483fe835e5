"""Weight changes of adapters, and conversions of the same change to other factors.

An `Adapter` is one module's tensors under LyCORIS names plus alpha; `delta` is its weight change as a matrix
(out, in * kernel height * kernel width). All in float32. Knows no names of modules and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANK_FROM = ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # rows are the rank; whole LoKr factors have none
EXACT_SVD_UP_TO = 512  # the smaller side; above it a randomised SVD is as good and 15 times faster
NOISE = 1e-6  # relative to the largest singular value, in float32


@dataclass(frozen=True)
class Adapter:
    """One module's adapter.

    tensors: by LyCORIS name without `.weight`. For LoRA `lora_down` (r, in[, kh, kw]) and `lora_up` (out, r[, 1, 1]),
        for DoRA also `dora_scale` (out, 1[, 1, 1]) or (1, in[, 1, 1]); `hada_*` or `lokr_*`, with a `dora_scale` if
        they were trained so; or `diff`, the change itself.
    alpha: the strength is alpha / rank.
    """

    tensors: dict[str, Tensor]
    alpha: float

    @property
    def kind(self) -> str:
        """`lora`, `dora`, `loha`, `lokr` or `full`."""
        if "lora_down" in self.tensors:
            return "dora" if "dora_scale" in self.tensors else "lora"
        if "diff" in self.tensors:
            return "full"
        return "loha" if "hada_w1_b" in self.tensors else "lokr"

    @property
    def needs_base(self) -> bool:
        """Return whether the change depends on the base's weights."""
        return "dora_scale" in self.tensors

    @property
    def lora_rank(self) -> int:
        """Rank of an adapter that certainly has one, such as every LoRA and DoRA."""
        assert self.rank is not None, self.kind
        return self.rank

    @property
    def rank(self) -> int | None:
        """Rank; None for a LoKr of two whole factors and a whole change, which therefore have strength 1."""
        return next((self.tensors[name].shape[0] for name in RANK_FROM if name in self.tensors), None)

    @property
    def scale(self) -> float:
        return 1.0 if self.rank is None else self.alpha / self.rank


def plain(down: Tensor, up: Tensor, alpha: float) -> Adapter:
    return Adapter({"lora_down": down, "lora_up": up}, float(alpha))


def delta(adapter: Adapter, weight: Tensor | None = None) -> Tensor:
    """Return the weight change, (out, in * kh * kw) float32.

    Args:
        weight: the base's weight, for adapters that need it.
    Raises:
        ValueError: the adapter needs a weight and got none.
    """
    change = _plain_change(adapter)
    if not adapter.needs_base:
        return change
    if weight is None:
        raise ValueError("a DoRA's change depends on the base's weights: name the base model.")
    return _decomposed(weight.float(), change, adapter.tensors["dora_scale"].float()) - weight.float().flatten(1)


def change_shape(adapter: Adapter) -> tuple[int, int]:
    """Return (out, in * kh * kw) of the change, without computing it."""
    meta = {name: tensor.to("meta") for name, tensor in adapter.tensors.items()}
    rows, columns = _plain_change(Adapter(meta, adapter.alpha)).shape
    return rows, columns


def _plain_change(adapter: Adapter) -> Tensor:
    """Return the change without DoRA's magnitudes."""
    t = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    if adapter.kind == "full":
        change = t["diff"].flatten(1)
    elif adapter.kind == "loha":
        change = _hada(t, "1") * _hada(t, "2")
    elif adapter.kind == "lokr":
        change = _kron(t)
    else:
        change = t["lora_up"].flatten(1) @ t["lora_down"].flatten(1)
    return change * adapter.scale


def _hada(t: dict[str, Tensor], i: str) -> Tensor:
    a, b = t[f"hada_w{i}_a"], t[f"hada_w{i}_b"]
    return _tucker(t[f"hada_t{i}"], a, b).flatten(1) if f"hada_t{i}" in t else a @ b


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """LyCORIS' Tucker form for convolutions: core (r, r, kh, kw), a (r, out), b (r, in) -> (out, in, kh, kw)."""
    return torch.einsum("ijhw,ip,jq->pqhw", core, a, b)


def _kron(t: dict[str, Tensor]) -> Tensor:
    first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        second = t["lokr_w2"].flatten(1)
    elif "lokr_t2" in t:
        second = _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"]).flatten(1)
    else:
        second = t["lokr_w2_a"] @ t["lokr_w2_b"].flatten(1)
    return torch.kron(first, second)  # flattened (in_1, in_2, kh, kw) is kron's order of columns


def _decomposed(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA (arXiv:2402.09353): the changed weight's direction times a trained length per output (or, older, input)."""
    changed = weight + change.reshape(weight.shape)
    if magnitude.numel() == weight.shape[0] and magnitude.shape[0] != 1:
        length = changed.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    else:
        length = changed.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.dim() - 2))
    return (changed * (magnitude.reshape(length.shape) / length)).flatten(1)


def norm(adapter: Adapter) -> float:
    """Frobenius norm of the change, for a DoRA without its magnitudes. For a LoRA without forming the product."""
    if adapter.kind in ("lora", "dora"):
        up, down = (in_float64(adapter.tensors[name].flatten(1)) for name in ("lora_up", "lora_down"))
        return abs(adapter.scale) * ((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt().item()
    return _plain_change(adapter).norm().item()


def in_float64(tensor: Tensor) -> Tensor:
    """Return the values in double precision; on the CPU unless on CUDA, as Apple's and some Intel GPUs lack it."""
    return (tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()).double()


def pad_rank(adapter: Adapter, rank: int, scale: float) -> Adapter:
    """Pad to `rank` with zeros, keeping the change, with `scale` as alpha / rank (the rest moves into `lora_up`)."""
    down, up = adapter.tensors["lora_down"].float(), adapter.tensors["lora_up"].float()
    extra = rank - down.shape[0]
    down = torch.cat([down, down.new_zeros(extra, *down.shape[1:])])
    up = torch.cat([up, up.new_zeros(up.shape[0], extra, *up.shape[2:])], dim=1)
    if adapter.scale != scale:
        up = up * (adapter.scale / scale)
    return Adapter({**adapter.tensors, "lora_down": down, "lora_up": up}, scale * rank)


def concatenate(adapters: Sequence[tuple[Adapter, float]]) -> Adapter:
    """Return the exact weighted sum of LoRAs: factors side by side, ranks added up, strength 1."""
    down = torch.cat([adapter.tensors["lora_down"].float() for adapter, _ in adapters])
    up = torch.cat([a.tensors["lora_up"].float() * (a.scale * weight) for a, weight in adapters], dim=1)
    return plain(down, up, down.shape[0])


def as_lora(adapter: Adapter, kernel: int, max_rank: int, weight: Tensor | None = None) -> tuple[Adapter, float]:
    """Return the adapter as a plain LoRA, exact if `max_rank` allows, else the nearest of that rank.

    Args:
        kernel: 0 for a linear layer, else the convolution's kernel size.
        weight: the base's weight, if the adapter needs it.
    Returns:
        The LoRA, and the share of the change's energy (squared norm) that it keeps.
    """
    if adapter.kind == "lora":
        return adapter, 1.0
    is_plain_loha = adapter.kind == "loha" and not {"hada_t1", "dora_scale"} & set(adapter.tensors)
    if is_plain_loha and adapter.lora_rank**2 <= max_rank:
        return _loha_as_lora(adapter, kernel), 1.0
    return svd_lora(delta(adapter, weight), kernel, max_rank)


def _loha_as_lora(adapter: Adapter, kernel: int) -> Adapter:
    """LoRA of rank r squared equal to (A1 B1) * (A2 B2), elementwise: from all pairs of columns and of rows."""
    a1, b1, a2, b2 = (adapter.tensors[f"hada_{name}"].float() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None] * b2[None]).flatten(0, 1)
    return shaped(plain(down, up, adapter.scale * down.shape[0]), kernel)


def svd_lora(change: Tensor, kernel: int, rank: int, energy: float = 1.0) -> tuple[Adapter, float]:
    """Return the LoRA nearest to `change` (out, in * kh * kw) with at most `rank`, or fewer that keep `energy` of it.

    Returns:
        The LoRA at strength 1 with equal norms of its factors, and the share of energy that it keeps.
    """
    smaller = min(change.shape)
    if smaller <= EXACT_SVD_UP_TO or 4 * rank > smaller:
        u, s, vt = torch.linalg.svd(change, full_matrices=False)
    else:
        kind = change.device.type
        devices = [change.device] if kind in ("cuda", "xpu") else []
        # Keeps the caller's random state, and makes the result repeatable.
        with torch.random.fork_rng(devices, device_type=kind if devices else "cuda"):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(change, q=rank + 16, niter=4)
        vt = v.T
    return _from_svd(u, s, vt, kernel, rank, energy, in_float64(change).square().sum().item())


def truncate(adapter: Adapter, kernel: int, rank: int, energy: float = 1.0) -> tuple[Adapter, float]:
    """Return a LoRA's best approximation of smaller rank, by SVD of its small core; see `svd_lora`."""
    qu, ru = torch.linalg.qr(adapter.tensors["lora_up"].flatten(1).float())
    qd, rd = torch.linalg.qr(adapter.tensors["lora_down"].flatten(1).float().T)
    u, s, vt = torch.linalg.svd(ru @ rd.T * adapter.scale)
    return _from_svd(qu @ u, s, vt @ qd.T, kernel, rank, energy, in_float64(s).square().sum().item())


def _from_svd(u, s, vt, kernel, rank, energy, total) -> tuple[Adapter, float]:
    kept = in_float64(s).square().cumsum(0) / max(total, 1e-300)
    if energy < 1:
        rank = min(rank, int((kept < energy).sum()) + 1)
    signal = int((s > NOISE * s[0]).sum())  # the rest is rounding noise, which would vanish in fp16
    rank = max(1, min(rank, signal))
    root = s[:rank].sqrt()
    lora = plain(root[:, None] * vt[:rank], u[:, :rank] * root, rank)
    return shaped(lora, kernel), min(kept[rank - 1].item(), 1.0) if total else 1.0


def shaped(adapter: Adapter, kernel: int) -> Adapter:
    """Reshape a LoRA's factors for its layer: (r, in) and (out, r), or with (k, k) and (1, 1) appended."""
    t = dict(adapter.tensors)
    if "lora_mid" in t:  # LoCon's Tucker form: the core goes into the down factor, exactly
        mid = t.pop("lora_mid")
        t["lora_down"] = torch.einsum("pqhw,qi->pihw", mid.float(), t["lora_down"].flatten(1).float()).to(mid.dtype)
    down, up = t["lora_down"], t["lora_up"]
    tail, one = ((kernel, kernel), (1, 1)) if kernel else ((), ())
    t["lora_down"] = down.reshape(down.shape[0], -1, *tail).contiguous()
    t["lora_up"] = up.reshape(up.shape[0], -1, *one).contiguous()
    return Adapter(t, adapter.alpha)
