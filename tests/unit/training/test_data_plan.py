"""Plan of a training's images before anything is encoded."""

from types import SimpleNamespace

import pytest

from sdxl_lora.data.sampler import BucketSampler
from sdxl_lora.training.data import open_images
from sdxl_lora.training.data_plan import notes_on_resolution, plan_data, steps_that_suffice


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
        assert (
            f"resolution {resolution} does not change images that are already prepared" in notes[0]
            and "1024" in notes[0]
        )


def example(repeats=1, is_class_image=False):
    return SimpleNamespace(repeats=repeats, is_class_image=is_class_image)


@pytest.mark.parametrize(
    ("examples", "images_per_step", "steps", "times"),
    [
        ([example()] * 20, 1, 2000, 100),
        ([example()] * 20, 4, 1000, 200),
        ([example()] * 4, 1, 1000, 250),
        ([example()] * 50, 1, 3000, 60),
        ([example()] * 1000, 1, 10000, 10),
        ([example()] * 1000, 8, 3000, 24),
        ([example(repeats=8)] * 20, 1, 2000, 100),
        ([example(repeats=8)] * 10 + [example(is_class_image=True)] * 80, 1, 2000, 100),
        ([example(is_class_image=True)] * 20, 1, 2000, 100),
    ],
)
def test_a_length_that_nobody_gives_uses_each_image_of_the_subject_often_enough(
    examples, images_per_step, steps, times
):
    sampler = BucketSampler([0] * len(examples), images_per_step, 0, None, [e.repeats for e in examples])
    found, said = steps_that_suffice(examples, sampler)
    assert found == steps
    assert said.startswith(f"length: {steps} steps, in which each image is used about {times} times;")


def test_epochs_and_steps_that_are_given_mean_what_they_say(train_config):
    notes = []
    settings = {"max_train_steps": None, "train_batch_size": 2}
    for given, steps, epochs in ((None, 1000, 500), (3, 6, 3)):
        config = train_config(**settings, num_train_epochs=given)
        plan = plan_data(config, open_images(config), 1, notes.append)
        assert (plan.total_steps, plan.sampler.passes(plan.total_steps)) == (steps, epochs)
    assert [note for note in notes if note.startswith("length: 1000 steps")] == notes
    config = train_config(max_train_steps=5, num_train_epochs=3)
    assert plan_data(config, open_images(config), 1, notes.append).total_steps == 5
