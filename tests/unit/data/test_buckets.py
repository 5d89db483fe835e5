"""sdxl_lora/data/buckets.py: the arithmetic of training sizes."""

import math

import pytest

from sdxl_lora.data.buckets import bucket_sizes, kept_share, largest_inner_bucket, nearest_bucket, smaller_buckets


@pytest.mark.parametrize(("resolution", "step", "max_aspect"), [(1024, 64, 2.0), (768, 32, 3.0), (64, 16, 2.0)])
def test_buckets_are_all_sizes_that_fill_the_area(resolution, step, max_aspect):
    sizes = bucket_sizes(resolution, step, max_aspect)
    area = resolution * resolution
    every = [
        (w, h)
        for w in range(step, area // step + 1, step)
        for h in range(step, area // step + 1, step)
        if w * h <= area and max(w, h) <= max_aspect * min(w, h)
        and ((w + step) * h > area or w * (h + step) > area)
    ]  # fmt: skip
    assert set(sizes) <= set(every) and len(sizes) == len(set(sizes))
    assert {(h, w) for w, h in sizes} == set(sizes)
    assert (resolution, resolution) in sizes
    assert all((w + step) * h > area or w * (h + step) > area for w, h in sizes)


def test_sdxl_sizes_are_among_the_buckets_of_1024():
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (832, 1216), (704, 1408)} <= set(bucket_sizes(1024))


def test_nearest_bucket_is_nearest_in_aspect_and_of_equals_the_largest():
    buckets = bucket_sizes(1024)
    for size in [(3000, 2000), (4000, 3000), (1000, 1000), (1080, 1920), (5000, 1000)]:
        chosen = nearest_bucket(size, buckets)
        distances = {b: abs(math.log(size[0] / size[1] * b[1] / b[0])) for b in buckets}
        assert distances[chosen] == pytest.approx(min(distances.values()))
    assert nearest_bucket((10, 10), [(64, 64), (128, 128), (128, 64)]) == (128, 128)


def test_kept_share_is_what_covering_leaves():
    assert kept_share((200, 100), (100, 100)) == pytest.approx(0.5)
    assert kept_share((100, 200), (50, 100)) == pytest.approx(1)


def test_small_pictures_find_a_smaller_bucket_without_enlarging():
    buckets = smaller_buckets(1024, 64, 2.0, min_side=512)
    for size in [(700, 600), (1000, 520), (600, 900), (2000, 2000)]:
        w, h = largest_inner_bucket(size, buckets)
        assert w <= size[0] and h <= size[1] and w * h <= 1024 * 1024 and min(w, h) >= 512
    assert largest_inner_bucket((500, 700), buckets) is None
    assert largest_inner_bucket((2000, 2000), buckets) == (1024, 1024)


def test_a_resolution_below_one_step_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="--bucket_step 32"):
        bucket_sizes(32, 64)
