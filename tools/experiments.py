"""Train and measure the rows of a table, and print it: `python -m tools.experiments run TABLE`, `... show TABLE`.

``tools/train/experiments/TABLE/ROW.toml`` is the configuration of a row. Its table ``[experiment]`` says what the row
is called (``title``), where in the table it stands (``position``), and from which other row (``TABLE/ROW``) or file it
takes its first weights (``start``), which it learns from (``teacher``), or that its encoder is the pretrained one
(``pretrained = true``). Results are kept in ``tools/train/results/TABLE/ROW.json``; a row that has one is not trained
again. With ``run TABLE --seed N`` the rows, and those that they start from, are trained once more with another seed
than their configurations have; what they make is kept beside it, in ``ROW.seed-N.json``, and tables show the mean.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import click

from bitseg.cost import network_cost
from bitseg.datasets import open_dataset
from bitseg.errors import BitsegError
from bitseg.evaluation import evaluate, scores
from bitseg.files import write_safely
from bitseg.segmenter import Segmenter
from tools.convert import convert
from tools.provenance import current_commit, today
from tools.train.checkpoint import check_checkpoint, read_checkpoint
from tools.train.config import config_from_dict, read_toml
from tools.train.errors import DivergenceError, TrainingError
from tools.train.folder import held_folder
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
    seed : int or None
        Seed to train with, if not that of the configuration.

    Raises
    ------
    TrainingError
        There is no such row, or its configuration is wrong.
    """

    def __init__(self, name, seed=None):
        self.name = name
        path = EXPERIMENTS / f"{name}.toml"
        values = read_toml(path)
        self.experiment = values.pop("experiment", {})
        try:
            self.config = config_from_dict(values)
        except TrainingError as error:
            raise TrainingError(f"{path}: {error}") from None
        # With its own seed a row is the configuration's, and so is what it starts from.
        self.seed = None if seed == self.config.seed else seed
        self.run, self.result_path = name, RESULTS / f"{name}.json"
        if self.seed is not None:
            self.config = replace(self.config, seed=seed)
            self.run, self.result_path = f"seed-{seed}/{name}", RESULTS / f"{name}.seed-{seed}.json"

    @property
    def title(self):
        """What the row is called in its table."""
        return self.experiment.get("title", self.name.rpartition("/")[2])

    def results(self):
        """What was measured with each seed, that of the configuration first: a list of dict.

        Raises
        ------
        TrainingError
            They are of different configurations.
        """
        others = sorted(RESULTS.glob(f"{self.name}.seed-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
        paths = [RESULTS / f"{self.name}.json", *others]
        results = [json.loads(path.read_text()) for path in paths if path.is_file()]
        # Results of before an option was there lack it.
        configs = [replace(config_from_dict(result["config"]), seed=0) for result in results]
        if any(config != configs[0] for config in configs):
            raise TrainingError(f"{self.name}: its seeds were trained with different configurations; run them again")
        return results

    def checkpoint(self, runs):
        """Checkpoint of the row's last stage, in the folder of all runs."""
        return Path(runs) / self.run / f"{self.config.stages[-1].name}.pt"


def rows_of(table, seed=None):
    """The rows of a table, by position: a list of `Row`."""
    paths = sorted((EXPERIMENTS / table).glob("*.toml"))
    if not paths:
        tables = ", ".join(sorted(path.name for path in EXPERIMENTS.iterdir() if path.is_dir()))
        raise TrainingError(f"there is no table '{table}': choose one of {tables}")
    rows = [Row(f"{table}/{path.stem}", seed) for path in paths]
    return sorted(rows, key=lambda row: row.experiment.get("position", 0))


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
        check_checkpoint(checkpoint, read_checkpoint(checkpoint), row.config, len(row.config.stages))
        return checkpoint
    sources = {}
    for role in ("start", "teacher"):
        source = row.experiment.get(role)
        if source is not None:
            is_row = (EXPERIMENTS / f"{source}.toml").is_file()
            sources[role] = train_row(Row(source, row.seed), data, runs, pretrained) if is_row else ROOT / source
    if row.experiment.get("pretrained"):
        if pretrained is None:
            raise TrainingError(f"{row.name} starts from a pretrained encoder: give --pretrained")
        sources["pretrained"] = pretrained
    click.echo(f"== {row.run}", err=True)
    command = f"python -m tools.experiments run {row.name}" + (f" --seed {row.seed}" if row.seed is not None else "")
    with held_folder(checkpoint.parent):
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
        accuracy = dict(read_checkpoint(checkpoint)["results"][stage.name])
        del accuracy["stage"]
        return {**accuracy, "measured_by": "PyTorch"}
    val = open_dataset(row.config.dataset, folder, "val")
    model = convert(checkpoint)
    return {**scores(evaluate(Segmenter(model).label_map, val), val), "measured_by": "bitseg"}


def run_row(row, data, runs, pretrained):
    """Train, measure and record a row that has no result yet; one that diverges is recorded as such."""
    if row.result_path.is_file():
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
        "date": today(),
        "commit": current_commit(),
        "experiment": row.experiment,
        "config": row.config.as_dict(),
    }
    row.result_path.parent.mkdir(parents=True, exist_ok=True)
    with write_safely(row.result_path, TrainingError) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    click.echo(f"{row.run}: mIoU {result['miou']}")


def markdown(rows, by_class):
    """A table of the results as Markdown: mIoU, accuracy and cost, or every class's IoU. Means over the seeds."""
    results = [row.results() for row in rows]
    found = [(row, of_seeds) for row, of_seeds in zip(rows, results) if of_seeds]
    if not found:
        raise TrainingError("none of its rows has a result yet: run it first")
    if by_class:
        lines = [["class", *(row.title for row, _ in found)]]
        for name in found[0][1][0]["classes"]:
            values = ([result.get("iou", {}).get(name) for result in of_seeds] for _, of_seeds in found)
            lines.append([name, *map(_mean_percent, values)])
        values = ([result["miou"] for result in of_seeds] for _, of_seeds in found)
        lines.append(["**mean**", *(f"**{_mean_percent(of_row)}**" for of_row in values)])
    else:
        figures = ["mIoU", "each seed", "pixel accuracy"]
        lines = [["row", "bits", *figures, "GMAC", "of these decoder", "iterations", "measured by"]]
        for row, of_seeds in found:
            bits = "-".join(map(str, of_seeds[0]["bits"]))
            iterations = sum(stage.iterations for stage in row.config.stages)
            ious = [result["miou"] for result in of_seeds]
            accuracies = [result.get("pixel_accuracy") for result in of_seeds]
            figures = [_mean_percent(ious), ", ".join(map(_percent, ious)), _mean_percent(accuracies)]
            cost = _billions(row.config.architecture)
            measured_by = ", ".join(sorted({result.get("measured_by", "diverged") for result in of_seeds}))
            lines.append([row.title, bits, *figures, *cost, str(iterations), measured_by])
    header, *body = ["| " + " | ".join(line) + " |" for line in lines]
    missing = [row.title for row, of_seeds in zip(rows, results) if not of_seeds]
    note = [f"\nNot measured yet: {', '.join(missing)}."] if missing else []
    return "\n".join([header, "| --- " * len(lines[0]) + "|", *body, *note])


def _billions(architecture):
    """Multiply-accumulates of the network and of its decoder at `COST_SIZE`, as text."""
    layers = network_cost(architecture, *COST_SIZE).layers
    decoder = [layer for layer in layers if layer.name.startswith("branch")]
    return [f"{sum(layer.multiplications for layer in part) / 1e9:.2f}" for part in (layers, decoder)]


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f}"


def _mean_percent(values):
    """Mean over the seeds; a seed with which the row diverged has no value, and then there is no mean."""
    return _percent(None if None in values else mean(values))


@click.group()
def main():
    """Experiments: the rows of the tables in README and docs/training.md."""


@main.command(context_settings={"show_default": True})
@click.argument("table")
@click.option("--data", default="../shared/data", type=click.Path(), help="Folder that holds the data sets by name.")
@click.option("--runs", default="runs", type=click.Path(), help="Folder for checkpoints.")
@click.option("--pretrained", type=click.Path(), help="Folded ResNet (.npz) for rows that start from it.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Another seed than that of the configurations.")
def run(table, data, runs, pretrained, seed):
    """Train and measure the rows of TABLE (or one, TABLE/ROW) that have no result yet."""
    try:
        for row in [Row(table, seed)] if "/" in table else rows_of(table, seed):
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
