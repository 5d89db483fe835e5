"""Length of a training and reasons for its slowness, by a clock that the test moves."""

import pytest

from sdxl_lora.run.pace import Pace, ToCome, duration


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def train(pace, clock, steps, seconds=2.0, data=0.0, device=0.0, first=0):
    """Do steps and report each; of its seconds some are spent waiting. Returns what was said."""
    said = []
    for step in range(first + 1, first + steps + 1):
        for what, waited in (("data", data), ("device", device)):
            with pace.waiting(what):
                clock.now += waited
        clock.now += seconds - data - device
        assert pace.report(step) == pytest.approx(seconds)
        said += pace.news()
    return said


def to_come(total, evaluations=0, checkpoints=0):
    return lambda step: ToCome(total - step, evaluations, checkpoints)


def test_the_estimate_counts_the_samples_and_checkpoints_that_are_still_to_come(clock):
    pace = Pace(clock)
    for what, seconds in (("validation", 5.0), ("samples", 25.0)):
        with pace.aside(what):
            clock.now += seconds
    pace.open(0, to_come(1000, evaluations=4, checkpoints=2))
    with pace.aside("saving"):
        clock.now += 3
    said = train(pace, clock, 1, seconds=30.0) + train(pace, clock, 10, first=1)
    assert said == ["about 35 min 04 s to go: 989 steps of 2 s, 4 evaluations of 30 s, 2 checkpoints of 3 s"]
    assert pace.seconds_left() == pytest.approx(989 * 2 + 4 * 30 + 2 * 3)


def test_while_the_last_samples_are_drawn_something_is_left(clock):
    pace = Pace(clock)
    pace.open(0, to_come(20, evaluations=1))
    train(pace, clock, 19)
    assert "1 evaluation not timed yet" in pace.estimate()
    with pace.aside("samples"):
        clock.now += 40
    train(pace, clock, 1, first=19)
    assert pace.seconds_left() == 40 and pace.estimate() == "about 40 s to go: 1 evaluation of 40 s"


def test_the_first_steps_of_a_process_are_not_its_pace(clock):
    pace = Pace(clock)
    pace.open(0, to_come(100))
    train(pace, clock, 1, seconds=90.0)
    assert pace.seconds_per_step == 90
    train(pace, clock, 3, seconds=1.0, first=1)
    assert pace.seconds_per_step == 1


def test_slow_steps_are_told_within_the_first_minute(clock):
    pace = Pace(clock)
    pace.open(0, to_come(100))
    assert train(pace, clock, 1, seconds=40.0) == []
    assert train(pace, clock, 1, seconds=40.0, first=1) == ["about 1 h 05 min to go: 98 steps of 40 s"]
    assert train(pace, clock, 20, seconds=40.0, first=2) == []


@pytest.mark.parametrize(
    ("waits", "tells_host", "cause"),
    [
        ({"data": 0.5, "device": 1.0}, True, "slow: 25% of a step's time is spent waiting for its images. Cache them."),
        ({"data": 0.1, "device": 1.0}, True, None),
        ({"device": 0.02}, True, "slow: the GPU finishes before it gets more to do"),
        ({"device": 0.02}, False, None),
    ],
)
def test_what_steps_wait_for_is_said_once(clock, waits, tells_host, cause):
    pace = Pace(clock)
    pace.open(0, to_come(1000), "Cache them.", tells_host)
    causes = [line for line in train(pace, clock, 60, **waits) if line.startswith("slow")]
    assert len(causes) == (cause is not None) and all(line.startswith(cause) for line in causes)


@pytest.mark.parametrize(
    ("what", "times", "words"),
    [
        (
            "samples",
            {"evaluations": 9},
            "slow: 73% of the remaining time is for samples. To reduce it: fewer --num_validation",
        ),
        (
            "validation",
            {"evaluations": 9},
            "slow: 73% of the remaining time is for validation. To reduce it: a smaller",
        ),
        (
            "saving",
            {"checkpoints": 9},
            "slow: 73% of the remaining time is for saving. To reduce it: a larger --checkpointing",
        ),
    ],
)
def test_what_eats_the_run_is_said_with_the_remedy(clock, what, times, words):
    pace = Pace(clock)
    pace.open(0, to_come(115, **times))
    with pace.aside(what):
        clock.now += 60
    said = train(pace, clock, 16)
    assert next(line for line in said if line.startswith("slow")).startswith(words)


def test_a_full_memory_is_said_at_once_and_once(clock):
    pace = Pace(clock)
    pace.open(0, to_come(100))
    clock.now += 1
    pace.report(1)
    assert pace.news("slow: full") == ["slow: full"] and pace.news("slow: full") == []


def test_what_fails_aside_has_no_time_of_its_own(clock):
    pace = Pace(clock)
    pace.open(0, to_come(10, evaluations=1))
    with pytest.raises(OSError), pace.aside("samples"):
        raise OSError
    assert "not timed yet" in pace.estimate()


def test_items_are_passed_on_and_their_time_is_that_of_waiting(clock):
    def slow():
        for item in "ab":
            clock.now += 3
            yield item

    pace = Pace(clock)
    pace.open(0, to_come(10), "Cache them.")
    for step, item in enumerate(pace.each(slow()), 1):
        clock.now += 27
        assert item == "ab"[step - 1]
        assert pace.report(step) == 30
    assert [line for line in pace.news() if line.startswith("slow")] == []


def test_durations_in_words():
    assert [duration(seconds) for seconds in (0.4, 59.6, 3725, 90)] == ["0 s", "1 min 00 s", "1 h 02 min", "1 min 30 s"]
