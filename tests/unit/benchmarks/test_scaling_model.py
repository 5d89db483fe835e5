"""The formula of the scaling benchmark, against what must hold of any cluster."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.scaling_model import CLUSTERS, GB, SIZES, Cluster

EVEN = Cluster("even", 0.1, 2, 8, math.inf, math.inf, latency=0, jitter=0)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda cluster: cluster.name)
def test_more_processes_are_faster_in_all_and_less_efficient_each(cluster):
    speeds = [cluster.images_per_second(n) for n in SIZES]
    efficiencies = [cluster.efficiency(n) for n in SIZES]
    assert efficiencies[0] == 1 and all(0 < later <= before for before, later in pairwise(efficiencies))
    assert all(later >= before for before, later in pairwise(speeds))


def test_without_network_and_jitter_it_is_linear():
    assert [EVEN.images_per_second(n) for n in (1, 8, 512)] == pytest.approx([20, 160, 10240])


def test_what_is_hidden_costs_nothing_and_what_is_not_costs_its_time():
    slow = replace(EVEN, network=1 * GB)
    allreduce = 2 * 15 / 16 * 93e6 / 1e9
    assert slow.allreduce(16, slow.gradients) == pytest.approx(allreduce)
    assert slow.step(16) == pytest.approx(0.1 + allreduce - 0.1 * 2 / 3)
    assert replace(slow, overlap=0).step(16) == pytest.approx(0.1 + allreduce)
    last_bucket = 2 * 15 / 16 * 25e6 / 4e9
    assert replace(slow, network=4 * GB).step(16) == pytest.approx(0.1 + last_bucket)


def test_a_file_system_that_cannot_keep_up_sets_the_pace():
    assert replace(EVEN, reads=1 * GB).images_per_second(512) == pytest.approx(1e9 / 0.58e6)
