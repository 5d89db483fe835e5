"""What a training's images are said to be before anything is encoded."""

from types import SimpleNamespace

import pytest

from sdxl_lora.training.data_plan import notes_on_resolution


@pytest.mark.parametrize(
    ("resolution", "sizes", "is_prepared", "is_said"),
    [
        (1024, [(1024, 1024), (832, 1216)], True, False),
        (1000, [(1024, 1024)], True, True),
        (2048, [(1024, 1024)], True, True),
        (512, [(1024, 1024)], False, False),
        (1024, [(960, 960)], True, False),
        (1024, [], True, False),
    ],
)
def test_a_resolution_that_changes_nothing_is_said(resolution, sizes, is_prepared, is_said):
    examples = [SimpleNamespace(target_size=size) for size in sizes]
    notes = notes_on_resolution(resolution, SimpleNamespace(examples=examples, is_prepared=is_prepared))
    assert bool(notes) is is_said
    if notes:
        assert f"resolution {resolution} does not change images that are prepared" in notes[0] and "1024" in notes[0]
