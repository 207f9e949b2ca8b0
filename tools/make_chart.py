"""Draw README's chart of speed against accuracy from measured JSON: `python -m tools.make_chart`.

Times come from `tools.compare_engines` (``docs/measured/avx512-vnni/MODEL-WIDTHxHEIGHT-THREADS.json``), accuracies from
the model files and, for the full-precision networks, from their results among the experiments. The other engines' int8
networks are drawn at the accuracy of bitseg's own 8-bit model: theirs was not measured.
"""

import json
from pathlib import Path

import click
import matplotlib
from matplotlib import pyplot

from bitseg.errors import BitsegError
from bitseg.model_file import find_model, read_model

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "docs" / "measured" / "avx512-vnni"
RESULTS = ROOT / "tools" / "train" / "results"
CHART = ROOT / "docs" / "pictures" / "speed-accuracy.png"
FAMILIES = {"voc7": ("w8a8", "w4a4", "w2a2", "w1a2"), "camvid": ("w8a8", "w4a4", "w2a2", "w1a2")}
"""Models of each data set, by what follows the data set in their names; the first has 8 bits."""

MARKERS = {"bitseg": ("o", "#0072b2"), "onnxruntime": ("s", "#d55e00"), "openvino": ("^", "#009e73")}


def points(family, size, threads):
    """What the chart of a data set shows: a list of (engine, label, milliseconds, mIoU in per cent)."""
    names = [f"{family}-{bits}" for bits in FAMILIES[family]]
    miou = {name: read_model(find_model(name)).training["accuracy"]["miou"] for name in names}
    results = {name: json.loads((MEASURED / f"{name}-{size}-{threads}.json").read_text()) for name in names}
    found = [
        ("bitseg", f"bitseg {results[name]['bits']}", results[name]["median_ms"]["bitseg"], 100 * miou[name])
        for name in names
    ]
    full_precision = json.loads((RESULTS / family / "float.json").read_text())["miou"]
    accuracy = {"fp32": full_precision, "int8": miou[names[0]]}
    # Every run has the same fp32 and int8 twins; those of the 2-2 model count.
    for name, milliseconds in results[f"{family}-w2a2"]["median_ms"].items():
        if name != "bitseg":
            engine, precision = name.split()
            found.append((engine, name, milliseconds, 100 * accuracy[precision]))
    return found


def draw(axes, shown, family, size, threads):
    """Draw what `points` gives for a data set."""
    for engine, label, milliseconds, miou in shown:
        marker, color = MARKERS[engine]
        axes.plot(milliseconds, miou, marker, color=color, markersize=9)
        others = [time for name, _, time, same in shown if same == miou and name not in ("bitseg", engine)]
        faster = all(milliseconds < other for other in others)
        if engine == "bitseg":
            x, y, side = -9, -19 if label.endswith("8-8") else 1, "right"
        elif label.endswith("int8"):
            x, y, side = 0, -18 if faster else -32, "center"
        else:
            x, y, side = (0, 9, "center") if faster else (9, -4, "left")
        axes.annotate(label, (milliseconds, miou), (x, y), textcoords="offset points", color=color, ha=side)
    axes.set_xscale("log")
    slowest = max(milliseconds for _, _, milliseconds, _ in shown)
    fastest = min(milliseconds for _, _, milliseconds, _ in shown)
    axes.set_xlim(fastest / 2, slowest * 2)
    axes.margins(y=0.12)
    axes.set_xticks(ticks := [tick for tick in (10, 20, 30, 50, 100, 200, 300) if fastest / 2 < tick < slowest * 2])
    axes.set_xticklabels(map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel(f"milliseconds a photo, {size}, {threads} thread{'s' * (threads > 1)} (log scale)")
    axes.set_ylabel(f"mIoU on {family} val, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


@click.command(context_settings={"show_default": True})
@click.option("--size", default="512x384", help="Size that was measured, WIDTHxHEIGHT.")
@click.option("--threads", default=1, help="Threads that were measured.")
def main(size, threads):
    """Draw the chart."""
    try:
        shown = {family: points(family, size, threads) for family in FAMILIES}
    except (OSError, KeyError, ValueError, BitsegError) as error:
        raise click.ClickException(f"a measurement is missing ({error}): run tools.compare_engines first") from None
    matplotlib.use("Agg")
    pyplot.rcParams["font.size"] = 10
    figure, panels = pyplot.subplots(1, len(shown), figsize=(12, 4.5), layout="constrained")
    for axes, family in zip(panels, shown):
        draw(axes, shown[family], family, size, threads)
    CHART.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(CHART, dpi=120)
    click.echo(CHART)


if __name__ == "__main__":
    main(prog_name="python -m tools.make_chart")
