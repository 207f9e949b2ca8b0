"""Train and measure the rows of a table, and print it: `python -m tools.experiments run TABLE`, `... show TABLE`.

``tools/train/experiments/TABLE/ROW.toml`` is the configuration of a row. Its table ``[experiment]`` says what the row
is called (``title``), where in the table it stands (``position``), and from which other row (``TABLE/ROW``) or file it
takes its first weights (``start``), which it learns from (``teacher``), or that its encoder is the pretrained one
(``pretrained = true``). Results are kept in ``tools/train/results/TABLE/ROW.json``; a row that has one is not trained
again.
"""

import json
from datetime import datetime, timezone
from pathlib import Path

import click

from bitseg.cost import network_cost
from bitseg.datasets import open_dataset
from bitseg.errors import BitsegError
from bitseg.evaluation import evaluate, scores
from bitseg.files import write_safely
from bitseg.segmenter import Segmenter
from tools.convert import convert, current_commit
from tools.train.config import config_from_dict, read_toml
from tools.train.errors import DivergenceError, TrainingError
from tools.train.quantizers import FLOAT_BITS
from tools.train.trainer import Trainer

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "tools" / "train" / "experiments"
RESULTS = ROOT / "tools" / "train" / "results"

COST_SIZE = 384, 480
"""Height and width, of a padded CamVid frame, for which operations are counted."""


class Row:
    """One row of a table.

    Parameters
    ----------
    name : str
        ``TABLE/ROW``.

    Raises
    ------
    TrainingError
        There is no such row, or its configuration is wrong.
    """

    def __init__(self, name):
        self.name = name
        path = EXPERIMENTS / f"{name}.toml"
        values = read_toml(path)
        self.experiment = values.pop("experiment", {})
        try:
            self.config = config_from_dict(values)
        except TrainingError as error:
            raise TrainingError(f"{path}: {error}") from None
        self.result_path = RESULTS / f"{name}.json"

    @property
    def title(self):
        """What the row is called in its table."""
        return self.experiment.get("title", self.name.rpartition("/")[2])

    def result(self):
        """What was measured, or None."""
        return json.loads(self.result_path.read_text()) if self.result_path.is_file() else None

    def checkpoint(self, runs):
        """Checkpoint of the row's last stage, in the folder of all runs."""
        return Path(runs) / self.name / f"{self.config.stages[-1].name}.pt"


def rows_of(table):
    """The rows of a table, by position: a list of `Row`."""
    paths = sorted((EXPERIMENTS / table).glob("*.toml"))
    if not paths:
        tables = ", ".join(sorted(path.name for path in EXPERIMENTS.iterdir() if path.is_dir()))
        raise TrainingError(f"there is no table '{table}': choose one of {tables}")
    return sorted((Row(f"{table}/{path.stem}") for path in paths), key=lambda row: row.experiment.get("position", 0))


def train_row(row, data, runs, pretrained):
    """Train a row, after the rows that it starts from or learns from; finished ones are skipped.

    Parameters
    ----------
    row : Row
    data : path
        Folder that holds the data sets by name.
    runs : path
        Folder for checkpoints.
    pretrained : path or None
        Folded ResNet for rows that start from it.

    Returns
    -------
    Path
        Checkpoint of the last stage.
    """
    checkpoint = row.checkpoint(runs)
    if checkpoint.is_file():
        return checkpoint
    sources = {}
    for role in ("start", "teacher"):
        source = row.experiment.get(role)
        if source is not None:
            is_row = (EXPERIMENTS / f"{source}.toml").is_file()
            sources[role] = train_row(Row(source), data, runs, pretrained) if is_row else ROOT / source
    if row.experiment.get("pretrained"):
        if pretrained is None:
            raise TrainingError(f"{row.name} starts from a pretrained encoder: give --pretrained")
        sources["pretrained"] = pretrained
    click.echo(f"== {row.name}", err=True)
    command = f"python -m tools.experiments run {row.name}"
    Trainer(row.config, Path(data) / row.config.dataset, checkpoint.parent, command, **sources).run()
    return checkpoint


def measure_row(row, checkpoint, data):
    """Accuracy of a trained row on the val split: by the engine, or by PyTorch where the row has floating point.

    Returns
    -------
    dict
        See `bitseg.evaluation.scores`; and ``measured_by``.
    """
    folder = Path(data) / row.config.dataset
    stage = row.config.stages[-1]
    if FLOAT_BITS in (stage.weight_bits, stage.activation_bits):
        from tools.train.checkpoint import read_checkpoint

        accuracy = dict(read_checkpoint(checkpoint)["results"][stage.name])
        del accuracy["stage"]
        return {**accuracy, "measured_by": "PyTorch"}
    val = open_dataset(row.config.dataset, folder, "val")
    model = convert(checkpoint)
    return {**scores(evaluate(Segmenter(model).label_map, val), val), "measured_by": "bitseg"}


def run_row(row, data, runs, pretrained):
    """Train, measure and record a row that has no result yet; one that diverges is recorded as such."""
    if row.result() is not None:
        return
    stage = row.config.stages[-1]
    try:
        checkpoint = train_row(row, data, runs, pretrained)
        accuracy = measure_row(row, checkpoint, data)
    except DivergenceError as error:
        accuracy = {"miou": None, "diverged": str(error)}
    result = {
        "row": row.name,
        "title": row.title,
        "bits": [stage.weight_bits, stage.activation_bits],
        "classes": list(row.config.architecture.classes),
        **accuracy,
        "seed": row.config.seed,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": current_commit(),
        "experiment": row.experiment,
        "config": row.config.as_dict(),
    }
    row.result_path.parent.mkdir(parents=True, exist_ok=True)
    with write_safely(row.result_path, TrainingError) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    click.echo(f"{row.name}: mIoU {result['miou']}")


def markdown(rows, by_class):
    """A table of the results as Markdown: mIoU and its distance from full precision, or every class's IoU."""
    results = [row.result() for row in rows]
    found = [(row, result) for row, result in zip(rows, results) if result is not None]
    if not found:
        raise TrainingError("none of its rows has a result yet: run it first")
    if by_class:
        lines = [["class", *(row.title for row, _ in found)]]
        for name in found[0][1]["classes"]:
            lines.append([name, *(_percent(result.get("iou", {}).get(name)) for _, result in found)])
        lines.append(["**mean**", *(f"**{_percent(result['miou'])}**" for _, result in found)])
    else:
        lines = [["row", "bits", "mIoU", "pixel accuracy", "GMAC", "of these decoder", "iterations", "measured by"]]
        for row, result in found:
            bits = "-".join(map(str, result["bits"]))
            iterations = sum(stage.iterations for stage in row.config.stages)
            figures = [_percent(result["miou"]), _percent(result.get("pixel_accuracy"))]
            cost = _billions(row.config.architecture)
            lines.append([row.title, bits, *figures, *cost, str(iterations), result.get("measured_by", "diverged")])
    header, *body = ["| " + " | ".join(line) + " |" for line in lines]
    missing = [row.title for row, result in zip(rows, results) if result is None]
    note = [f"\nNot measured yet: {', '.join(missing)}."] if missing else []
    return "\n".join([header, "| --- " * len(lines[0]) + "|", *body, *note])


def _billions(architecture):
    """Multiply-accumulates of the network and of its decoder at `COST_SIZE`, as text."""
    layers = network_cost(architecture, *COST_SIZE).layers
    decoder = [layer for layer in layers if layer.name.startswith("branch")]
    return [f"{sum(layer.multiplications for layer in part) / 1e9:.2f}" for part in (layers, decoder)]


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f}"


@click.group()
def main():
    """Experiments: the rows of the tables in README."""


@main.command(context_settings={"show_default": True})
@click.argument("table")
@click.option("--data", default="../shared/data", type=click.Path(), help="Folder that holds the data sets by name.")
@click.option("--runs", default="runs", type=click.Path(), help="Folder for checkpoints.")
@click.option("--pretrained", type=click.Path(), help="Folded ResNet (.npz) for rows that start from it.")
def run(table, data, runs, pretrained):
    """Train and measure the rows of TABLE (or one, TABLE/ROW) that have no result yet."""
    try:
        for row in [Row(table)] if "/" in table else rows_of(table):
            run_row(row, data, runs, pretrained)
    except BitsegError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("table")
@click.option("--classes", "by_class", is_flag=True, help="Show the IoU of every class.")
def show(table, by_class):
    """Print the results of TABLE as Markdown."""
    try:
        click.echo(markdown(rows_of(table), by_class))
    except BitsegError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main(prog_name="python -m tools.experiments")
