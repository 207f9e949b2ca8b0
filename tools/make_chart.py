"""Draw README's chart of speed against accuracy from measured JSON: `python -m tools.make_chart`.

Times come from `tools.compare_engines` (``docs/measured/avx2/MODEL-WIDTHxHEIGHT-THREADS.json``), accuracies from the
model files and, for the full-precision network, from its result among the experiments. The other engines' int8 networks
are drawn at the accuracy of bitseg's own 8-bit model: theirs was not measured.
"""

import json
from pathlib import Path

import click
import matplotlib
from matplotlib import pyplot

from bitseg.errors import BitsegError
from bitseg.model_file import find_model, read_model

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "docs" / "measured" / "avx2"
FULL_PRECISION = ROOT / "tools" / "train" / "results" / "voc7" / "float.json"
CHART = ROOT / "docs" / "pictures" / "speed-accuracy.png"
EIGHT_BITS = "voc7-w8a8"
MODELS = {"voc7-w8a8": "8-8", "voc7-w4a4": "4-4", "voc7-w2a2": "2-2"}
MARKERS = {"bitseg": ("o", "#0072b2"), "onnxruntime": ("s", "#d55e00"), "openvino": ("^", "#009e73")}


def points(size, threads):
    """What the chart shows: a list of (engine, label, milliseconds, mIoU in per cent)."""
    miou = {name: read_model(find_model(name)).training["accuracy"]["miou"] for name in MODELS}
    results = {name: json.loads((MEASURED / f"{name}-{size}-{threads}.json").read_text()) for name in MODELS}
    found = [
        ("bitseg", f"bitseg {bits}", results[name]["median_ms"]["bitseg"], 100 * miou[name])
        for name, bits in MODELS.items()
    ]
    accuracy = {"fp32": json.loads(FULL_PRECISION.read_text())["miou"], "int8": miou[EIGHT_BITS]}
    # Every run has the same fp32 and int8 twins; those of the default model count.
    for name, milliseconds in results["voc7-w2a2"]["median_ms"].items():
        if name != "bitseg":
            engine, precision = name.split()
            found.append((engine, name, milliseconds, 100 * accuracy[precision]))
    return found


@click.command(context_settings={"show_default": True})
@click.option("--size", default="512x384", help="Size that was measured, WIDTHxHEIGHT.")
@click.option("--threads", default=1, help="Threads that were measured.")
def main(size, threads):
    """Draw the chart."""
    try:
        shown = points(size, threads)
    except (OSError, KeyError, ValueError, BitsegError) as error:
        raise click.ClickException(f"a measurement is missing ({error}): run tools.compare_engines first") from None
    matplotlib.use("Agg")
    pyplot.rcParams["font.size"] = 11
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for engine, label, milliseconds, miou in shown:
        marker, color = MARKERS[engine]
        axes.plot(milliseconds, miou, marker, color=color, markersize=9)
        # bitseg below its point; of two engines with the same accuracy the faster one on the left.
        others = [time for name, _, time, same in shown if same == miou and name not in ("bitseg", engine)]
        x, y, side = (0, -18, "center") if engine == "bitseg" else (9, -4, "left")
        if engine != "bitseg" and others:
            if milliseconds < min(others):
                x, side = -9, "right"
            elif label.endswith("int8"):
                # The fp32 engines' labels are to the right.
                x, y, side = 0, -18, "center"
        axes.annotate(label, (milliseconds, miou), (x, y), textcoords="offset points", color=color, ha=side)
    axes.set_xscale("log")
    slowest = max(milliseconds for _, _, milliseconds, _ in shown)
    fastest = min(milliseconds for _, _, milliseconds, _ in shown)
    axes.set_xlim(fastest / 1.3, slowest * 2)
    axes.margins(y=0.12)
    axes.set_xticks(ticks := [tick for tick in (10, 20, 30, 50, 100, 200, 300) if fastest / 1.3 < tick < slowest * 2])
    axes.set_xticklabels(map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel(f"milliseconds a photo, {size}, {threads} thread{'s' * (threads > 1)} (log scale)")
    axes.set_ylabel("mIoU on voc7 val, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    CHART.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(CHART, dpi=120)
    click.echo(CHART)


if __name__ == "__main__":
    main(prog_name="python -m tools.make_chart")
