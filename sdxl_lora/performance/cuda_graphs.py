"""Micro-steps as CUDA graphs: recorded once for each image size, then replayed.

At batch 1 a fast GPU waits for its host, which launches thousands of small operations in each step; a replay is one
launch. Communication between processes is no part of a graph: see distributed/gradients.py. Independent of the model.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sdxl_lora.performance.device_memory import free_memory, is_out_of_memory

WARM_UPS = 2  # before recording, in which libraries choose their kernels and lazy buffers are filled
MOST_GRAPHS = 32  # kept at once; each has thousands of nodes, which take memory of their own
MOST_DIFFERENCE = 0.05  # relative to the gradient's norm; in bfloat16 two equivalent computations differ by 0.014

Compute = Callable[[dict[str, Tensor]], Tensor]


class Recorder(Protocol):
    """Device operations that recording needs."""

    def random_state(self) -> Tensor: ...

    def set_random_state(self, state: Tensor) -> None: ...

    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        """Run `compute` where a recording would run it."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Return a function that replays `compute`, and the losses that a replay fills."""

    def release(self) -> None:
        """Release the memory that recordings share."""


class CudaRecorder:
    """Recorder of CUDA graphs, which share their memory because only one runs at a time."""

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
    """Replay of `compute(batch)`, which returns losses and adds to the gradients; one recording for each batch shape.

    Gradients and parameters must stay where they are in memory: zero and load them in place. Read the losses before
    the next call. Each recording is replayed once and its gradients compared. If recording fails, a replay differs or
    memory runs out, `report` is told the reason once, and `compute` runs unrecorded from then on.
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
            except RuntimeError as error:  # includes torch.OutOfMemoryError
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
        """Return `compute(batch)` without a recording. If recordings leave too little memory, drop them for good."""
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
        """Release the recordings' memory; later calls record anew."""
        self.records.clear()
        self.recorder.release()

    def _record(self, batch: dict[str, Tensor]) -> Record:
        """Record `compute`, leaving gradients and random state as they were.

        Raises:
            RuntimeError: recording fails, the replay differs, or memory does not suffice.
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
    """Raise RuntimeError if replayed gradients differ from the recorded ones; after an fp16 overflow none can tell."""
    differences = torch._foreach_sub(gradients, expected)
    norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (differences, expected)]
    difference, norm = torch.stack(norms).tolist()
    if difference > MOST_DIFFERENCE * norm:
        raise RuntimeError(f"a replayed gradient of norm {norm:.3g} differs from the recorded one by {difference:.3g}")
