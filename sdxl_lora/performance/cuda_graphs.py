"""Micro-steps as CUDA graphs: recorded once for each size of images, then replayed.

At batch 1 a fast GPU waits for its host, which launches thousands of small operations in each step; a replay is one
launch. What processes send each other is not part of a graph: see distributed/gradients.py. Knows no model.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sdxl_lora.performance.device_memory import free_memory, is_out_of_memory

WARM_UPS = 2  # before recording: libraries choose their kernels then, and lazy buffers are filled
MOST_GRAPHS = 32  # kept at once; each has thousands of nodes, which take memory of their own
MOST_DIFFERENCE = 0.05  # of a replayed gradient's norm; in bfloat16 two ways to compute the same differ by 0.014

Compute = Callable[[dict[str, Tensor]], Tensor]


class Recorder(Protocol):
    """What the recording asks of a device."""

    def random_state(self) -> Tensor: ...

    def set_random_state(self, state: Tensor) -> None: ...

    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        """Run it where a recording would."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Return what runs it again, and the losses that this fills."""

    def release(self) -> None:
        """Give back the memory that recordings share."""


class CudaRecorder:
    """CUDA graphs, which share their memory, as only one runs at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def random_state(self) -> Tensor:
        return torch.cuda.get_rng_state()

    def set_random_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(state)

    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            compute()
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        graph, self.pool = torch.cuda.CUDAGraph(), self.pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # another thread pins
            losses = compute().detach()
        return graph.replay, losses

    def release(self) -> None:
        self.pool = None
        free_memory()


class Record(NamedTuple):
    batch: dict[str, Tensor]  # what the graph reads
    replay: Callable[[], object]
    losses: Tensor


class RecordedMicroStep:
    """Calls `compute(batch)`, which returns losses and adds to the gradients, by replaying what it did to such shapes.

    Gradients and parameters must stay where they are in memory: zero and load them in place. Losses are to be read
    before the next call. Each recording is replayed once and compared with what it recorded. Where recording fails,
    differs or finds too little memory, `report` is told why once, and `compute` runs as it is from then on.
    """

    def __init__(
        self,
        compute: Compute,
        parameters: Sequence[nn.Parameter],
        report: Callable[[str], object],
        recorder: Recorder | None = None,
    ):
        self.compute, self.parameters, self.report = compute, list(parameters), report
        self.recorder = recorder or CudaRecorder()
        self.records: OrderedDict[tuple, Record] = OrderedDict()  # the least recently used first
        self.has_failed = False

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        if self.has_failed:
            return self.compute(batch)
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        if key not in self.records:
            try:
                if len(self.records) == MOST_GRAPHS:
                    self.records.popitem(last=False)
                self.records[key] = self._record(batch)
            except RuntimeError as error:  # torch's for a lack of memory is one too
                self.has_failed = True
                self.report(f"going on without CUDA graphs: {str(error).strip().splitlines()[0]}")
                self.release()
                return self.compute(batch)
        self.records.move_to_end(key)
        record = self.records[key]
        for name, tensor in record.batch.items():
            tensor.copy_(batch[name])
        record.replay()
        return record.losses

    def beside(self, batch: dict[str, Tensor]) -> Tensor:
        """`compute(batch)` as it is. Recordings that leave too little memory for it go for good."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        kept, random_state = [gradient.clone() for gradient in gradients], self.recorder.random_state()
        try:
            return self.compute(batch)
        except RuntimeError as error:
            if not (self.records and is_out_of_memory(error)):
                raise
        self.has_failed = True
        self.report("going on without CUDA graphs: they leave too little memory for a step that is not recorded")
        self.release()
        torch._foreach_copy_(gradients, kept)
        self.recorder.set_random_state(random_state)
        return self.compute(batch)

    def release(self) -> None:
        """Give the recordings' memory back. What comes next is recorded anew."""
        self.records.clear()
        self.recorder.release()

    def _record(self, batch: dict[str, Tensor]) -> Record:
        """Leaves gradients and random state as they were.

        Raises:
            RuntimeError: it cannot be recorded, does something else when replayed, or does not fit.
        """
        recorder, batch = self.recorder, {name: tensor.clone() for name, tensor in batch.items()}
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        kept, random_state = [gradient.clone() for gradient in gradients], recorder.random_state()

        def begin() -> None:
            torch._foreach_zero_(gradients)
            recorder.set_random_state(random_state)

        try:
            for _ in range(WARM_UPS):
                begin()
                recorder.warm_up(lambda: self.compute(batch))
            expected = [gradient.clone() for gradient in gradients]
            replay, losses = recorder.capture(lambda: self.compute(batch))
            begin()
            replay()
            check_equal(gradients, expected)
        finally:
            torch._foreach_copy_(gradients, kept)
            recorder.set_random_state(random_state)
        return Record(batch, replay, losses)


def check_equal(gradients: list[Tensor], expected: list[Tensor]) -> None:
    """
    Raises:
        RuntimeError: replayed gradients are not those that were recorded. Where fp16 overflowed, nothing can be said.
    """
    differences = torch._foreach_sub(gradients, expected)
    norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (differences, expected)]
    difference, norm = torch.stack(norms).tolist()
    if difference > MOST_DIFFERENCE * norm:
        raise RuntimeError(f"a replayed gradient of norm {norm:.3g} differs from the recorded one by {difference:.3g}")
