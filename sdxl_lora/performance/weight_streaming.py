"""Frozen model in the host's memory: each block's weights are copied to the device for its computation.

A second stream makes one copy per block while the block before computes. Weights are dropped after use and never
written back. The backward pass copies them again, whether blocks are recomputed or not. Trained parameters, and layers
outside these blocks, stay on the device. A weight that is absent reads as NaN.

diffusers' group offloading is unsuitable: after a block's forward it points the block's parameters at their copies in
the host's memory, where the backward pass finds them, and trained parameters at their initial values.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from sdxl_lora.performance.device_memory import COUNTING

Table = dict[str, Any]  # a module's parameters or buffers by name

BLOCKS = (BasicTransformerBlock, ResnetBlock2D, Downsample2D, Upsample2D)  # nearly all of an SDXL UNet
AT_ONCE = 2  # blocks whose weights are on the device: one computes, the next is being copied
ALIGNMENT = 256  # bytes, that of CUDA's allocator
SLAB = 2**28  # bytes: the pinned allocator rounds up to a power of two, so blocks share pieces of that size


def stream_weights(model: nn.Module, device: torch.device) -> "WeightStream":
    """Keep the frozen weights of the model's blocks in the host's memory, and move the rest to the device.

    Args:
        model: in the host's memory, with its adapters and as it will compute.
    """
    host = HostMemory(pinned=device.type in COUNTING)
    stream = WeightStream([Block(module, host, device) for module in blocks_of(model)], device)
    for block in stream.blocks:
        block.module.register_forward_pre_hook(functools.partial(stream.enter, block))
        block.module.register_forward_hook(functools.partial(stream.leave, block), always_call=True)
    model.to(device)
    forward = model.forward

    @functools.wraps(forward)
    def forward_that_saves_no_weight(*args, **kwargs):
        with torch.autograd.graph.saved_tensors_hooks(stream.pack, stream.unpack):
            return forward(*args, **kwargs)

    model.forward = forward_that_saves_no_weight
    return stream


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights are copied together; none is part of another."""
    if isinstance(model, BLOCKS):
        return [model]
    return [block for child in model.children() for block in blocks_of(child)]


def frozen_tensors(module: nn.Module) -> Iterator[tuple[Table, str, Tensor]]:
    """Yield frozen parameters and buffers (such as packed weights), each after its table and its name there."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None and not tensor.requires_grad:
                    yield table, name, tensor


def streamed_bytes(model: nn.Module, bytes_of: Callable[[Tensor], int]) -> tuple[int, int]:
    """Return the bytes that `stream_weights` keeps in the host's memory, and the most on the device at once."""
    sizes = [sum(bytes_of(tensor) for *_, tensor in frozen_tensors(block)) for block in blocks_of(model)]
    return sum(sizes), AT_ONCE * max(sizes, default=0)


class HostMemory:
    """Allocator of the host's memory, pinned for asynchronous copies to a device."""

    def __init__(self, pinned: bool):
        self.pinned = pinned
        self.left = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """Return unused bytes (size,)."""
        whole = aligned(size)
        if whole > len(self.left):
            self.left = torch.empty(max(whole, SLAB), dtype=torch.uint8, pin_memory=self.pinned)
        taken, self.left = self.left[:size], self.left[whole:]
        return taken


def aligned(size: int) -> int:
    """Return the next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Place(NamedTuple):
    """Place of a tensor's values in a block's bytes, and a substitute for the tensor while they are absent."""

    table: Table
    name: str
    begin: int
    end: int
    stride: tuple[int, ...]
    absent: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Return the tensor in those bytes, a new one each time because recomputing keeps the tensors it saw."""
        flat = values[self.begin : self.end].view(self.absent.dtype)
        return like(self.absent, flat.as_strided(self.absent.shape, self.stride))


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """Return the values, as a frozen parameter if `tensor` is a parameter."""
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


class Block:
    """Frozen weights of a module, in the host's memory."""

    def __init__(self, module: nn.Module, host: HostMemory, device: torch.device):
        self.module, self.places = module, []
        end, before = 0, None
        found = [(_place_in_memory(tensor), table, name) for table, name, tensor in frozen_tensors(module)]
        for here, table, name in sorted(found, key=lambda each: each[0]):
            tensor = table[name]
            begin = end if here == before else aligned(end)  # joined weights stay joined
            end, before = begin + tensor.nbytes, (here[0], here[1] + tensor.nbytes)
            unknown = torch.zeros((), dtype=torch.float32, device=device)
            absent = (unknown.fill_(torch.nan) if tensor.is_floating_point() else unknown).to(tensor.dtype)
            absent = like(tensor, absent.expand(tensor.shape))
            self.places.append(Place(table, name, begin, end, tensor.stride(), absent))
        self.values = host.take(end)
        for place in self.places:
            place.of(self.values).copy_(place.table[place.name].detach())
        self.drop()

    def show(self, values: Tensor) -> None:
        """Point the module's weights at these bytes."""
        for place in self.places:
            place.table[place.name] = place.of(values)

    def drop(self) -> None:
        """Replace the module's weights by their absent substitutes."""
        for place in self.places:
            place.table[place.name] = place.absent


def _place_in_memory(tensor: Tensor) -> tuple[int, int]:
    """Return a tensor's storage and its first byte there."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()) * tensor.element_size()


class Coming(NamedTuple):
    """Copy of a block's weights to the device; `arrived` is None where copying is synchronous."""

    block: Block
    values: Tensor
    arrived: Any


class Kept(NamedTuple):
    """Reference to a block's weight that autograd keeps instead of the tensor."""

    block: Block
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class WeightStream:
    """Stream of blocks' weights to the device, each copied while the block before it computes.

    Attributes:
        copies: number of copies so far.
    """

    def __init__(self, blocks: list[Block], device: torch.device):
        self.blocks, self.device, self.copies = blocks, device, 0
        self.size = max((len(block.values) for block in blocks), default=0)
        self.module = torch.get_device_module(device) if device.type in COUNTING else None
        self.side = self.module.Stream(device) if self.module else None
        self.order: list[Block] = []  # of the first calls
        self.coming: Coming | None = None
        self.shown: dict[int, Block] = {}  # by the storage of their weights on the device
        self.unpacked: tuple[Block, Tensor] | None = None  # the one that the backward pass reads

    @contextlib.contextmanager
    def at_home(self) -> Iterator[None]:
        """Show all blocks' weights in the host's memory, for readers between steps."""
        for block in self.blocks:
            block.show(block.values)
        try:
            yield
        finally:
            for block in self.blocks:
                block.drop()

    def enter(self, block: Block, *_) -> None:
        """Show a block's weights before its forward, and begin to copy the next block's."""
        if block not in self.order:
            self.order.append(block)
        self.unpacked = None
        values = self.bring(block)
        block.show(values)
        self.shown[values.untyped_storage()._cdata] = block

    def leave(self, block: Block, *_) -> None:
        """Drop a block's weights after its forward; those kept by a recomputed block stay until its backward ends."""
        self.shown = {storage: shown for storage, shown in self.shown.items() if shown is not block}
        block.drop()

    def pack(self, tensor: Tensor) -> Tensor | Kept:
        """Return the object that autograd keeps for a tensor."""
        block = self.shown.get(tensor.untyped_storage()._cdata)
        if block is None:
            return tensor
        return Kept(block, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def unpack(self, kept: Tensor | Kept) -> Tensor:
        """Return the tensor for the backward pass."""
        if isinstance(kept, Tensor):
            return kept
        if self.unpacked is None or self.unpacked[0] is not kept.block:
            self.unpacked = None
            self.unpacked = kept.block, self.bring(kept.block)
        values = self.unpacked[1]
        flat = values[: len(values) // kept.dtype.itemsize * kept.dtype.itemsize].view(kept.dtype)
        return flat.as_strided(kept.shape, kept.stride, kept.offset)

    def bring(self, block: Block) -> Tensor:
        """Return a block's weights as bytes on the device, and begin to copy the next block's."""
        coming, self.coming = self.coming, None
        if coming is not None and coming.arrived is not None:
            coming.arrived.wait()  # even for an unwanted block: its memory is about to be reused
        if coming is None or coming.block is not block:
            coming = None
            coming = self._send(block)
            if coming.arrived is not None:
                coming.arrived.wait()
        if (following := self._following(block)) is not None:
            self.coming = self._send(following)
        return coming.values

    def _following(self, block: Block) -> Block | None:
        """Return the block that computes next; in the backward pass, the one before."""
        is_backward = torch._C._current_graph_task_id() != -1
        place = self.order.index(block) + (-1 if is_backward else 1)
        return self.order[place] if 0 <= place < len(self.order) else None

    def _send(self, block: Block) -> Coming:
        """Begin to copy a block's weights.

        The memory belongs to the computing stream, in pieces of one size, so at most AT_ONCE pieces are ever used. A
        piece is reused once the work enqueued before is done, for which the copying stream waits.
        """
        self.copies += 1
        values = torch.empty(self.size, dtype=torch.uint8, device=self.device)[: len(block.values)]
        if self.module is None or self.side is None:
            return Coming(block, values.copy_(block.values), None)
        self.side.wait_stream(self.module.current_stream(self.device))
        with self.module.stream(self.side):
            values.copy_(block.values, non_blocking=True)
            return Coming(block, values, self.side.record_event())
