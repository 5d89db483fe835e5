"""Processes that start again in a store where dead ones have written: they find each other, and only each other."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import PrefixStore, TCPStore

from sdxl_lora.distributed.rendezvous import living_only, rendezvous_of_the_living
from sdxl_lora.errors import LostProcessError


class WatchedStore(TCPStore):
    """Tells by `spoken` when a process has said all that it can until another one comes."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.spoken = threading.Event()

    def set(self, key, value):
        super().set(key, value)
        self.spoken.set()

    def check(self, keys):
        found = super().check(keys)
        if keys == ["start"] and not found:
            self.spoken.set()
        return found


@pytest.fixture
def client():
    """A function that gives a connection to one store, waiting at most `seconds`."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def connect(seconds=30):
        return WatchedStore("127.0.0.1", server.port, timeout=timedelta(seconds=seconds), wait_for_workers=False)

    return connect


def start(client, order, world_size=3):
    """The parts of the store that processes come to, which begin in this order of ranks, one after the other."""
    with ThreadPoolExecutor(world_size) as processes:
        coming = {}
        for rank in order:
            store = client()
            coming[rank] = processes.submit(living_only, store, rank, world_size)
            assert store.spoken.wait(60), "the next begins when this one waits for it"
        return [coming[rank].result() for rank in range(world_size)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["the main process first", "the main process last"])
def test_those_of_one_start_share_a_part_that_no_other_start_wrote_to(client, order):
    for number in range(3):
        parts = start(client, order)
        assert not any(part.check(["address of 1"]) for part in parts)
        parts[1].set("address of 1", f"start {number}")
        assert [part.get("address of 1") for part in parts] == [f"start {number}".encode()] * 3


def test_who_answered_a_main_process_that_died_answers_the_next(client):
    """Rank 1 comes while there is a name of a dead main process, and rank 2 of that start never came."""
    client().set("start", "dead")
    first, second = start(client, (1, 0), world_size=2)
    first.set("address of 0", "here")
    assert second.get("address of 0") == b"here"
    assert not PrefixStore("dead", client()).check(["address of 0"])


@pytest.mark.parametrize(
    "rank, words", [(0, "rank 1 did not arrive within 1 s"), (1, "the main process did not arrive")]
)
def test_who_waits_in_vain_ends_and_says_for_whom(client, rank, words):
    with pytest.raises(LostProcessError, match=words):
        living_only(client(seconds=1), rank, 2)


def test_one_process_waits_for_nobody(client):
    assert isinstance(living_only(client(), 0, 1), torch.distributed.Store)


@pytest.mark.parametrize("rank, address", [("1", "nowhere.invalid"), ("1", "127.0.0.1")])
def test_a_main_process_that_nobody_finds_is_told_with_its_address(monkeypatch, rank, address):
    with socket.socket() as nobody:  # bound, and listening to none
        nobody.bind(("127.0.0.1", 0))
        named = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(nobody.getsockname()[1])}
        for name, value in named.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(LostProcessError, match=f"cannot meet at {address}:{named['MASTER_PORT']}, MASTER_ADDR and"):
            next(rendezvous_of_the_living("living://", timedelta(seconds=1)))
