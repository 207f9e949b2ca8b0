"""What a second thread gains: which timings are with near processors, and which with far ones."""

import pytest

from tools.compare_threads import gains, handover_nanoseconds, near_and_far


def test_timings_are_told_apart_by_what_was_measured_around_them():
    times = {"a": [1.0, 2.0, 3.0], "b": [10.0, 20.0, 30.0]}
    # Before a, b, a, b, a, b, and at the end.
    handovers = [40, 45, 200, 210, 220, 40, 50]
    near, far = near_and_far(times, handovers)
    assert near == {"a": [1.0], "b": [30.0]}
    assert far == {"a": [2.0], "b": [20.0]}


def test_a_handover_takes_time():
    assert 1 < handover_nanoseconds() < 1e6


def test_a_gain_is_of_medians_and_of_least_times():
    times = {("a", 1): [10.0, 8.0, 30.0], ("a", 2): [5.0, 4.0, 6.0], ("b", 1): [9.0], ("b", 2): [3.0]}
    result = gains(times, ["a", "b"], 2)
    assert result["timings"] == [1, 3] and result["median_ms"] == {"a": [10.0, 5.0], "b": [9.0, 3.0]}
    assert result["gain"] == pytest.approx({"a": 2.0, "b": 3.0})
    assert result["gain_of_least"] == pytest.approx({"a": 2.0, "b": 3.0})


def test_nothing_is_gained_where_an_engine_has_no_timings():
    assert gains({("a", 1): [1.0], ("a", 2): []}, ["a"], 2) == {"timings": [0, 1]}
