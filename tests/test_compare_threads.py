"""What a second thread gains: which timings are with near processors, and which with far ones."""

from tools.compare_threads import handover_nanoseconds, near_and_far


def test_timings_are_told_apart_by_what_was_measured_around_them():
    times = {"a": [1.0, 2.0, 3.0], "b": [10.0, 20.0, 30.0]}
    # Before a, b, a, b, a, b, and at the end.
    handovers = [40, 45, 200, 210, 220, 40, 50]
    near, far = near_and_far(times, handovers)
    assert near == {"a": [1.0], "b": [30.0]}
    assert far == {"a": [2.0], "b": [20.0]}


def test_a_handover_takes_time():
    assert 1 < handover_nanoseconds() < 1e6
