"""Latents on disk: many at once are those of one at a time, no record of what is not finite, and workers that die."""

import pytest
import torch

from sdxl_lora.cache.fill import key_in
from sdxl_lora.cache.latents import LatentCache, in_batches
from sdxl_lora.cache.records import Workers, read_record
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.errors import DataError, NonFiniteError
from sdxl_lora.models.loading import Base, load_vae
from sdxl_lora.models.vae import VaeEncoder
from tests.helpers.caches import fill, records
from tests.helpers.dying_worker import FaultyImages
from tests.helpers.marks import slow
from tests.helpers.paths import ROOT

BOTH = (False, True)
SHAPES = ROOT / "examples" / "shapes" / "base"


class Watched(VaeEncoder):
    """Notes how many pictures of which size are encoded at once; more than `room` do not fit."""

    def __init__(self, base, dtype=torch.float32, room=99):
        super().__init__(load_vae(Base(str(base))), dtype)
        self.room, self.batches = room, []

    def __call__(self, pixels, names):
        self.batches.append((len(pixels), pixels.shape[-1]))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().__call__(pixels, names)


@pytest.fixture
def five(five_of_two_sizes):
    return ImageDataset(open_dataset(dataset_name=str(five_of_two_sizes)), resolution=64)


def content(cache):
    """All that a cache holds, by its files' names."""
    return {path.relative_to(cache.folder): read_record(path) for path in records(cache.folder)}


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(record[name], other[path][name]) for path, record in one.items() for name in record
    )


def test_many_at_once_are_those_of_one_at_a_time(tmp_path, tiny_base, five):
    """Within rounding, under the same names, for pictures of two sizes whose batches are not all full."""
    alone, together = (LatentCache(tmp_path / str(n), five, "key", batch_size=n) for n in (1, 4))
    one_by_one, encode = Watched(tiny_base), Watched(tiny_base)
    assert alone.fill(one_by_one, BOTH, 0, Workers()) == together.fill(encode, BOTH, 0, Workers()) == 10
    assert [size for _, size in one_by_one.batches] == [64] * 6 + [96] * 4 and {n for n, _ in one_by_one.batches} == {1}
    assert encode.batches == [(4, 64), (2, 64), (4, 96)]
    torch.testing.assert_close(content(together), content(alone))


def test_who_is_beside_whom_depends_on_no_process_and_no_stop(tmp_path, tiny_base, five):
    """So the bits do not, either: two processes, and a filling that was stopped after a batch, give those of one."""
    encode = Watched(tiny_base)
    whole, shared, resumed = (LatentCache(tmp_path / name, five, "key", batch_size=2) for name in "abc")
    whole.fill(encode, BOTH, 0, Workers())
    for rank in (1, 0):
        shared.fill(encode, BOTH, 1 - rank, Workers(rank, 2))
    stops = iter([False, False, True])
    assert resumed.fill(encode, BOTH, 0, Workers(should_stop=lambda: next(stops))) == 10
    assert len(records(resumed.folder)) == 4
    assert resumed.fill(encode, BOTH, 0, Workers()) == 6
    assert same_bits(content(whole), content(shared)) and same_bits(content(whole), content(resumed))


def test_a_batch_that_is_filled_in_part_encodes_what_is_missing(tmp_path, tiny_base, five):
    cache, encode = LatentCache(tmp_path, five, "key", batch_size=4), Watched(tiny_base)
    cache.fill(encode, BOTH, 0, Workers())
    before = content(cache)
    for index in (0, 2):
        cache.path(index, True).unlink()
    encode.batches.clear()
    assert cache.fill(encode, BOTH, 0, Workers()) == 2 and encode.batches == [(1, 64), (1, 64)]
    torch.testing.assert_close(content(cache), before)


def test_a_picture_that_is_there_twice_is_encoded_once(tmp_path, tiny_base, five):
    five.examples[1] = five.examples[0]
    encode = Watched(tiny_base)
    LatentCache(tmp_path, five, "key").fill(encode, (False,), 0, Workers())
    assert len(encode.batches) == 4


def test_batches_have_one_size_and_come_in_the_order_of_their_first():
    assert in_batches("aBbcdDCE", str.isupper, 2) == [["a", "b"], ["B", "D"], ["c", "d"], ["C", "E"]]
    assert in_batches("aBbc", str.isupper, 1) == [["a"], ["B"], ["b"], ["c"]]
    assert in_batches("", str.isupper, 2) == []


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, tiny_base, five):
    encode = Watched(tiny_base, room=2)
    cache = LatentCache(tmp_path, five, "key", batch_size=6)
    with pytest.warns(UserWarning, match=r"out of memory with \d images in the VAE at once: going on with") as said:
        cache.fill(encode, BOTH, 0, Workers())
    assert [str(one.message).rpartition(" ")[2] for one in said] == ["3", "1"], "once for all that follow"
    assert len(content(cache)) == 10 and encode.batches[2:] == [(1, 64)] * 6 + [(1, 96)] * 4
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        LatentCache(tmp_path / "none", five, "key").fill(Watched(tiny_base, room=0), BOTH, 0, Workers())


def test_a_stop_leaves_the_parts_of_a_batch_that_are_there(tmp_path, tiny_base, five):
    """It is asked for before each part, where memory suffices for two of four."""
    stops, cache = iter([False, True]), LatentCache(tmp_path, five, "key", batch_size=4)
    with pytest.warns(UserWarning, match="out of memory with 4 images"):
        cache.fill(Watched(tiny_base, room=2), BOTH, 0, Workers(should_stop=lambda: next(stops)))
    assert len(records(tmp_path)) == 2 and not list(stops)


def test_out_of_memory_for_a_later_part_loses_no_earlier_one(tmp_path, tiny_base, five):
    class Shrinking(Watched):
        def __call__(self, pixels, names):
            self.room = 2 if len(self.batches) < 2 else 0
            return super().__call__(pixels, names)

    cache = LatentCache(tmp_path, five, "key", batch_size=4)
    with pytest.warns(UserWarning, match="out of memory with"), pytest.raises(torch.OutOfMemoryError, match="no room"):
        cache.fill(Shrinking(tiny_base), BOTH, 0, Workers())
    assert len(records(tmp_path)) == 2


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision_rounds_what_a_trained_vae_gives(images, dtype, most):
    vae, pixels = load_vae(Base(str(SHAPES))), torch.stack([images.load(index)["pixels"] for index in range(4)])
    exact, rounded = (VaeEncoder(vae, kind)(pixels, "abcd") for kind in (torch.float32, dtype))
    for name in ("mean", "std"):
        full, half = (torch.stack([moments[name] for moments in found]) for found in (exact, rounded))
        assert half.dtype == torch.float32 and 0 < (half - full).norm() / full.norm() < most


def test_half_precision_has_records_of_its_own(tmp_path, tiny_base, images):
    exact, rounded = (
        fill(tmp_path, tiny_base, images, vae_dtype=dtype, vae_batch_size=2)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact.vae_key == key_in(torch.float32, exact.vae_key) != rounded.vae_key
    assert len(records(tmp_path / "latents")) == 2 * 8
    assert not torch.equal(exact.read(0)["mean"], rounded.read(0)["mean"])


def test_a_picture_that_overflows_in_half_precision_is_encoded_again_alone(tiny_base):
    """Bright ones overflow in fp16 where a VAE multiplies them by 1e5; a grey one does not."""
    vae = load_vae(Base(str(tiny_base)))
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1e5)
    grey, bright = torch.full((3, 64, 64), 1e-3), torch.ones(3, 64, 64)
    encode, in_full = VaeEncoder(vae, torch.float16), []
    original = vae.encode
    vae.encode = lambda pixels: in_full.append(pixels) or original(pixels)
    with pytest.warns(UserWarning, match="the VAE overflows in float16 for a: it is encoded in float32") as said:
        found = encode(torch.stack([bright, grey, bright]), ["a", "b", "c"])
    assert len(said) == 1 and [pixels.shape[0] for pixels in in_full] == [1, 1]
    expected = {name: VaeEncoder(vae)(pixels[None], [name])[0] for name, pixels in {"a": bright, "b": grey}.items()}
    assert same_bits({0: found[0], 2: found[2]}, {0: expected["a"], 2: expected["a"]})
    torch.testing.assert_close(found[1], expected["b"], rtol=0.05, atol=0.05)


def test_nan_latents_name_the_picture_and_leave_no_record(tmp_path, tiny_base, images):
    vae = load_vae(Base(str(tiny_base)))
    with torch.no_grad():
        vae.encoder.conv_in.weight.fill_(1e38)
    for batch_size in (1, 4):
        with pytest.raises(NonFiniteError, match="astronaut"):
            LatentCache(tmp_path, images, "key", batch_size=batch_size).fill(VaeEncoder(vae), (False,), 0, Workers())
        assert not records(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_picture_ends_the_filling_with_its_name_when_the_rest_of_its_batch_is_kept(
    tmp_path, tiny_base, captioned_photographs, num_workers
):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in captioned_photographs.iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[: 5000 if path.stem == "chelsea" else None])
    images = ImageDataset(open_dataset(str(raw)), resolution=64)
    cache = LatentCache(tmp_path, images, "key", batch_size=4)
    with pytest.raises(DataError, match=r"chelsea\.jpg: truncated JPEG"):
        cache.fill(Watched(tiny_base), (False,), num_workers, Workers())
    there = [cache.path(index, False).exists() for index in range(4)]
    assert there == ["chelsea" not in example.name for example in images.examples] and there.count(True) == 3


@pytest.mark.parametrize(("fault", "batch_size"), [*slow(("die", 4)), ("hang", 1)])
def test_a_worker_that_dies_or_hangs_is_reported_with_its_picture(
    tmp_path, images, tiny_base, monkeypatch, fault, batch_size
):
    latents = LatentCache(tmp_path, FaultyImages(images, fault), "key", batch_size=batch_size)
    decoded = latents._decoded

    def lose_patience_at_the_third(*arguments):
        for number, picture in enumerate(decoded(*arguments)):
            if number == 1:
                monkeypatch.setattr("sdxl_lora.cache.latents.WORKER_TIMEOUT_SECONDS", 1)
            yield picture

    monkeypatch.setattr(latents, "_decoded", lose_patience_at_the_third)
    with pytest.raises(DataError, match=r"decodes .*coffee\.png died or is hanging: no answer for 1 s"):
        latents.fill(Watched(tiny_base), (False,), 1, Workers())
    assert len(records(tmp_path)) == 2, "what was encoded before is kept"


@pytest.mark.parametrize(("first", "raised"), [(None, OSError), (DataError("the disk: no JPEG"), DataError)])
def test_a_failure_inside_a_batch_keeps_what_was_before_it_and_hides_no_damaged_picture(
    tmp_path, images, tiny_base, monkeypatch, first, raised
):
    def two_then_failure(items, num_workers):
        yield first or images.load(0)
        yield images.load(1)
        raise OSError("the disk is gone")

    cache = LatentCache(tmp_path, images, "key", batch_size=4)
    monkeypatch.setattr(cache, "_decoded", two_then_failure)
    with pytest.raises(raised, match="the disk"):
        cache.fill(Watched(tiny_base), (False,), 0, Workers())
    assert [cache.path(index, False).exists() for index in range(4)] == [first is None, True, False, False]
