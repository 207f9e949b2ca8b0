"""What a second thread gains: every fp32 engine and bitseg with one thread and with more, interleaved in one process.

    python tools/compare_threads.py --model voc7-w1a2 --size 512x384

Medians are compared, and least times, which others on the same machine disturb less. A host may give a virtual machine
two processors of one third-level cache now, and of two a minute later: what one has written then takes longer to the
other. How long is measured before and after each timing, and rounds with processors near and far are shown apart.
"""

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

from bitseg.kernels.counters import add, read

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parent.parent))
from tools.compare_engines import ENGINES, BitsegEngine, example_image, network_options, open_network, time_awake

NEAR = 100
"""Nanoseconds in which a processor hands a cache line to another one that shares a cache with it: some 40 to 70. With
others it takes 150 and more."""

HANDOVERS = 300
"""How often a line goes to and fro in one measurement of which the median of `MEASUREMENTS` counts."""

MEASUREMENTS = 5


@numba.njit(nogil=True)
def _hand_over(counter, turn, times):
    for number in range(times):
        while read(counter, 0, 0) != 2 * number + turn:
            pass
        add(counter, 0, 0, 1)


def handover_nanoseconds():
    """How long a cache line takes from one of two threads to the other."""

    def measured():
        counter = np.zeros((1, 1), np.int64)
        other = threading.Thread(target=_hand_over, args=(counter, 1, HANDOVERS))
        other.start()
        began = time.perf_counter()
        _hand_over(counter, 0, HANDOVERS)
        other.join()
        return (time.perf_counter() - began) / (2 * HANDOVERS) * 1e9

    return statistics.median(measured() for _ in range(MEASUREMENTS))


def time_rounds(engines, image, rounds):
    """Each round times every engine once, in turn.

    Returns
    -------
    list of (key of engines, milliseconds)
    list of float
        How many nanoseconds a handover took, before each timing and after the last one.
    """
    for engine in engines.values():
        engine(image)
    handover_nanoseconds()
    timed, handovers = [], []
    for _ in range(rounds):
        for key, engine in engines.items():
            timed.append((key, time_awake(engine, image, asleep=lambda: handovers.append(handover_nanoseconds()))))
    time_awake(engine, image, asleep=lambda: handovers.append(handover_nanoseconds()))
    return timed, handovers


def show(title, timed, names, threads):
    """A table of what each engine gains; none if one of them was not timed with either number of threads."""
    times = {(name, number): [] for name in names for number in (1, threads)}
    for key, milliseconds in timed:
        times[key].append(milliseconds)
    if not all(times.values()):
        return
    rounds = min(map(len, times.values()))
    click.echo(f"\n{title}: {rounds} round{'s' if rounds > 1 else ''} at least")
    click.echo(f"{'engine':18} {'1 thread':>10} {f'{threads} threads':>10} {'gain':>6} {'of least times':>15}")
    for name in names:
        one, more = times[name, 1], times[name, threads]
        medians = statistics.median(one), statistics.median(more)
        gain, least = medians[0] / medians[1], min(one) / min(more)
        click.echo(f"{name:18} {medians[0]:10.2f} {medians[1]:10.2f} {gain:5.2f}x {least:14.2f}x")


@click.command(context_settings={"show_default": True})
@network_options
@click.option("--threads", default=2, type=click.IntRange(min=2), help="Threads to compare with one.")
@click.option("--rounds", default=21, type=click.IntRange(min=1), help="Rounds of the interleaved run.")
def main(preset, bits, model_name, size, threads, rounds):
    """Compare what bitseg, ONNX Runtime and OpenVINO in fp32 gain from more threads."""
    model, image = open_network(preset, bits, model_name), example_image(size)
    kinds = {name: kind for name, kind in ENGINES.items() if kind is BitsegEngine or name.endswith("fp32")}
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            (name, number): kind(model, *image.shape[:2], number, folder)
            for name, kind in kinds.items()
            for number in (1, threads)
        }
        timed, handovers = time_rounds(engines, image, rounds)
    apart = list(zip(timed, pairwise(handovers)))
    near = [timing for timing, around in apart if max(around) < NEAR]
    far = [timing for timing, around in apart if min(around) >= NEAR]
    show("all", timed, kinds, threads)
    show(f"a cache line goes from thread to thread in less than {NEAR} ns, before and after", near, kinds, threads)
    show(f"in {NEAR} ns and more", far, kinds, threads)


if __name__ == "__main__":
    main()
