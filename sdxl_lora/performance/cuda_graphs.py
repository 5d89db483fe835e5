"""Micro-steps as CUDA graphs: recorded once for each size of pictures, then replayed.

At batch 1 a fast GPU waits for its host, which launches thousands of small operations in each step; a replay is one
launch. For one process: what DDP sends while gradients arise is not part of a graph here. Knows no model.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WARM_UPS = 2  # before recording: libraries choose their kernels then, and lazy buffers are filled


class Record(NamedTuple):
    batch: dict[str, Tensor]  # what the graph reads
    graph: "torch.cuda.CUDAGraph"
    losses: Tensor


class RecordedMicroStep:
    """Calls `compute(batch)`, which returns losses and adds to the gradients, by replaying what it did to such shapes.

    Gradients and parameters must stay where they are in memory: zero and load them in place. All graphs share their
    memory, as only one runs at a time; losses are to be read before the next call. Where recording fails, `report` is
    told why once, and `compute` runs as it is.
    """

    def __init__(
        self,
        compute: Callable[[dict[str, Tensor]], Tensor],
        parameters: Sequence[nn.Parameter],
        report: Callable[[str], object],
    ):
        self.compute, self.parameters, self.report = compute, list(parameters), report
        self.records: dict[tuple, Record] = {}
        self.pool: Any = None
        self.has_failed = False

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        if not self.has_failed and key not in self.records:
            try:
                self.records[key] = self._record(batch)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.has_failed = True
                self.report(f"going on without --cuda_graphs, which failed: {str(error).strip().splitlines()[0]}")
        if key not in self.records:
            return self.compute(batch)
        record = self.records[key]
        for name, tensor in record.batch.items():
            tensor.copy_(batch[name])
        record.graph.replay()
        return record.losses

    def _record(self, batch: dict[str, Tensor]) -> Record:
        """Leaves gradients and random state as they were."""
        batch = {name: tensor.clone() for name, tensor in batch.items()}
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        kept, random_state = [gradient.clone() for gradient in gradients], torch.cuda.get_rng_state()
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self.compute(batch)
            torch.cuda.current_stream().wait_stream(side)
            graph, self.pool = torch.cuda.CUDAGraph(), self.pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # another thread pins
                losses = self.compute(batch).detach()
        finally:
            torch._foreach_copy_(gradients, kept)
            torch.cuda.set_rng_state(random_state)
        return Record(batch, graph, losses)
