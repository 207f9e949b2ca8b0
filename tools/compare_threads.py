"""What a second thread gains: every fp32 engine and bitseg with one thread and with more, interleaved in one process.

    python tools/compare_threads.py --model voc7-w1a2 --size 512x384

Medians are compared, and least times, which others on the same machine disturb less. A host may let a virtual machine
run on two processors that share a cache, and a minute later on two that share none: what one has written then takes
longer to the other. That time is measured before and after each timing, and timings with processors near and far are
shown apart. It is measured between two threads, wherever the system lets them run: it says nothing of a third one, nor
of two among many processors.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import click
import numba
import numpy as np

from bitseg.kernels.counters import add, look_again, read

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parent.parent))
from tools.compare_engines import (
    ENGINES,
    BitsegEngine,
    conditions,
    example_image,
    network_options,
    open_network,
    time_engines,
)

NEAR = 100
"""Nanoseconds in which a processor hands a cache line to another one that shares a cache with it: some 40 to 70. With
others it takes 150 and more."""

HANDOVERS = 3_000
"""How often a line goes to and fro in one measurement, to which the start of a thread adds some 10 ns then."""

MEASUREMENTS = 7
"""Of which the least counts: a new thread may share its processor with the old one for some milliseconds."""


@numba.njit(nogil=True)
def _hand_over(counter, turn, times):
    for number in range(times):
        looks = 0
        while read(counter, 0, 0) != 2 * number + turn:
            looks = look_again(looks)
        add(counter, 0, 0, 1)


def handover_nanoseconds():
    """How long a cache line takes from one of two threads to the other: the least of `MEASUREMENTS`."""

    def measured():
        counter = np.zeros((1, 1), np.int64)
        other = threading.Thread(target=_hand_over, args=(counter, 1, HANDOVERS))
        other.start()
        began = time.perf_counter()
        _hand_over(counter, 0, HANDOVERS)
        other.join()
        return (time.perf_counter() - began) / (2 * HANDOVERS) * 1e9

    return min(measured() for _ in range(MEASUREMENTS))


def near_and_far(times, handovers):
    """Timings with near processors before and after, and those with far ones; the others are in neither.

    Parameters
    ----------
    times : dict of lists
        See `time_engines`.
    handovers : list of float
        Nanoseconds, before each timing and after the last one, in the order of rounds.

    Returns
    -------
    dict of lists, dict of lists
    """
    near, far = {key: [] for key in times}, {key: [] for key in times}
    around = list(pairwise(handovers))
    for place, (key, timings) in enumerate(times.items()):
        for milliseconds, nanoseconds in zip(timings, around[place :: len(times)], strict=True):
            if max(nanoseconds) < NEAR:
                near[key].append(milliseconds)
            elif min(nanoseconds) >= NEAR:
                far[key].append(milliseconds)
    return near, far


def gains(times, names, threads):
    """What each engine gains from more threads; but for the number of timings nothing where there are none of one.

    Returns
    -------
    dict
        ``timings``, the least and the largest number of each engine and number of threads, and by engine
        ``median_ms`` with one thread and with more, ``gain`` of medians, and ``gain_of_least`` times.
    """
    counts = [len(timings) for timings in times.values()]
    result = {"timings": [min(counts), max(counts)]}
    if all(counts):
        pairs = {name: (times[name, 1], times[name, threads]) for name in names}
        medians = {name: [statistics.median(timings) for timings in pair] for name, pair in pairs.items()}
        result["median_ms"] = medians
        result["gain"] = {name: one / more for name, (one, more) in medians.items()}
        result["gain_of_least"] = {name: min(one) / min(more) for name, (one, more) in pairs.items()}
    return result


def show(title, result, threads):
    """A table of `gains`."""
    least, most = result["timings"]
    click.echo(f"\n{title}: {least} to {most} timings each")
    if not least:
        return
    click.echo(f"{'engine':18} {'1 thread':>10} {f'{threads} threads':>10} {'gain':>6} {'of least times':>15}")
    for name, (one, more) in result["median_ms"].items():
        gain, gain_of_least = result["gain"][name], result["gain_of_least"][name]
        click.echo(f"{name:18} {one:10.2f} {more:10.2f} {gain:5.2f}x {gain_of_least:14.2f}x")


@click.command(context_settings={"show_default": True})
@network_options
@click.option("--threads", default=2, type=click.IntRange(min=2), help="Threads to compare with one.")
@click.option("--rounds", default=21, type=click.IntRange(min=1), help="Rounds of the interleaved run.")
@click.option("--json", "json_file", type=click.Path(), help="Write the results to this file.")
def main(preset, bits, model_name, size, threads, rounds, json_file):
    """Compare what bitseg, ONNX Runtime and OpenVINO in fp32 gain from more threads."""
    model, image = open_network(preset, bits, model_name), example_image(size)
    kinds = {name: kind for name, kind in ENGINES.items() if kind is BitsegEngine or name.endswith("fp32")}
    handover_nanoseconds()  # compiles it
    handovers = []

    def asleep():
        handovers.append(handover_nanoseconds())

    with tempfile.TemporaryDirectory() as folder:
        engines = {
            (name, number): kind(model, *image.shape[:2], number, folder)
            for name, kind in kinds.items()
            for number in (1, threads)
        }
        times = time_engines(engines, image, rounds, wakes=True, asleep=asleep)
    near, far = near_and_far(times, handovers)
    least, median, most = min(handovers), statistics.median(handovers), max(handovers)
    click.echo(f"a cache line goes from one thread to another in {least:.0f} to {most:.0f} ns, median {median:.0f}")
    titles = {
        "all": "all",
        "near": f"less than {NEAR} ns before and after",
        "far": f"{NEAR} ns and more before and after",
    }
    result = {"handover_ns": [least, median, most]}
    for (kind, title), timings in zip(titles.items(), (times, near, far), strict=True):
        result[kind] = gains(timings, kinds, threads)
        show(title, result[kind], threads)
    if json_file:
        result |= conditions(model, size, threads, rounds)
        Path(json_file).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
