"""Predict the speed of n training processes: the formula, and hardware to apply it to.

    step(n) = compute * (1 + jitter * sqrt(2 ln n)) + exposed(n),   and at least  n * batch * record / reads
    exposed(n) = max(allreduce(last bucket), allreduce(gradients) - overlap * compute)       0 for one process
    allreduce(bytes) = 2 (n - 1) / n * bytes / link + 2 log2(n) * latency
    efficiency(n) = step(1) / step(n)

All wait for the slowest of n processes: with normal jitter it lags by about sqrt(2 ln n) standard deviations. DDP sends
buckets of 25 MB while the backward pass, two thirds of the step, computes the next; the last has nothing to hide
behind. Up to `per_node` processes share a node's own link; beyond that, the node's network carries the ring.
"""

import math
from dataclasses import dataclass

MB, GB = 10**6, 10**9
BUCKET = 25 * MB
GRADIENTS = 93 * MB  # SDXL, rank 16 on attention, float32
RECORD = 0.58 * MB  # one image's latents and its caption's embeddings in the cache, at 1024 x 1024


@dataclass(frozen=True)
class Cluster:
    """Hardware of a training.

    Attributes:
        compute: seconds of a step of one process alone.
        batch: images of a process in a step.
        node_link, network: bytes per second of an all-reduce's ring in a node, and between nodes.
        reads: bytes per second of the file system that all read the cache from; inf if each has it in memory.
        jitter: standard deviation of a step's time as a share of it.
        overlap: share of a step in which gradients can be sent while others are computed.
    """

    name: str
    compute: float
    batch: int
    per_node: int
    node_link: float
    network: float
    reads: float = math.inf
    latency: float = 10e-6
    jitter: float = 0.01
    overlap: float = 2 / 3
    gradients: float = GRADIENTS
    record: float = RECORD

    def allreduce(self, processes: int, size: float) -> float:
        """Return the seconds to add up `size` bytes over all processes."""
        link = self.node_link if processes <= self.per_node else self.network
        return 2 * (processes - 1) / processes * size / link + 2 * math.log2(processes) * self.latency

    def step(self, processes: int) -> float:
        """Return the seconds of a step."""
        slowest = self.compute * (1 + self.jitter * math.sqrt(2 * math.log(processes)))
        exposed = 0.0
        if processes > 1:
            rest = self.allreduce(processes, self.gradients) - self.overlap * self.compute
            exposed = max(self.allreduce(processes, min(BUCKET, self.gradients)), rest)
        return max(slowest + exposed, processes * self.batch * self.record / self.reads)

    def images_per_second(self, processes: int) -> float:
        return processes * self.batch / self.step(processes)

    def efficiency(self, processes: int) -> float:
        return self.images_per_second(processes) / (processes * self.images_per_second(1))


# At 1024 x 1024, batch 1, a step takes 35 ms on an H200 and 163 ms on an RTX 4090 (18 and 86 by FLOPs).
CLUSTERS = (
    Cluster("H200, 8 a node, NVLink, 400 GB/s between nodes", 0.035, 1, 8, 300 * GB, 400 * GB),
    Cluster("H200, 8 a node, 100 Gb/s Ethernet", 0.035, 1, 8, 300 * GB, 12.5 * GB, latency=30e-6),
    Cluster("the same, cache read from one server at 5 GB/s", 0.035, 1, 8, 300 * GB, 12.5 * GB, 5 * GB, latency=30e-6),
    Cluster("RTX 4090, 4 a node, PCIe, 10 Gb/s Ethernet", 0.163, 1, 4, 12 * GB, 1.25 * GB, latency=50e-6),
)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
