"""What a second thread gains: every fp32 engine and bitseg with one thread and with more, interleaved in one process.

    python tools/compare_threads.py --model voc7-w1a2 --size 512x384

Medians are compared, and least times, which others on the same machine disturb less.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import click

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parent.parent))
from tools.compare_engines import ENGINES, BitsegEngine, example_image, network_options, open_network, time_engines


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
        times = time_engines(engines, image, rounds, wakes=True)
    click.echo(f"{'engine':18} {'1 thread':>10} {f'{threads} threads':>10} {'gain':>6} {'of least times':>15}")
    for name in kinds:
        one, more = times[name, 1], times[name, threads]
        medians = statistics.median(one), statistics.median(more)
        gain, least = medians[0] / medians[1], min(one) / min(more)
        click.echo(f"{name:18} {medians[0]:10.2f} {medians[1]:10.2f} {gain:5.2f}x {least:14.2f}x")


if __name__ == "__main__":
    main()
