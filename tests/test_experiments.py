"""Experiments: the rows that are shipped, and how rows are trained, measured, kept and shown."""

import json
import shutil

import pytest
import tiny_training
from click.testing import CliRunner
from tiny_training import Stopped, stop_after

from tools import experiments
from tools.experiments import EXPERIMENTS, ROOT, Row, main
from tools.train.quantizers import FLOAT_BITS

ROWS = sorted(path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in EXPERIMENTS.glob("*/*.toml"))

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


class TestShippedRows:
    @pytest.mark.parametrize("name", ROWS)
    def test_a_row_is_valid_and_what_it_starts_from_exists(self, name):
        row = Row(name)
        assert set(row.experiment) <= {"title", "position", "start", "teacher", "pretrained"}
        sources = [row.experiment[role] for role in ("start", "teacher") if role in row.experiment]
        assert all(source in ROWS or (ROOT / source).is_file() for source in sources)
        assert not ("start" in row.experiment and row.experiment.get("pretrained")), "one of them"
        distils = any(stage.distillation for stage in row.config.stages)
        assert distils == ("teacher" in row.experiment)
        last = row.config.stages[-1]
        assert last.evaluate or FLOAT_BITS not in (last.weight_bits, last.activation_bits), (
            "the engine measures no floating point, so the training run must"
        )

    def test_no_row_waits_for_itself(self):
        def sources(name):
            experiment = Row(name).experiment
            return [experiment[role] for role in ("start", "teacher") if experiment.get(role) in ROWS]

        finished = set()
        while len(finished) < len(ROWS):
            ready = {name for name in ROWS if set(sources(name)) <= finished}
            assert ready > finished, f"these wait for one another: {set(ROWS) - finished}"
            finished = ready

    @pytest.mark.parametrize("table", sorted({name.split("/")[0] for name in ROWS} - {"common"}))
    def test_the_rows_of_a_table_stand_in_an_order_with_titles_of_their_own(self, table):
        rows = experiments.rows_of(table)
        assert len({row.experiment.get("position", 0) for row in rows}) == len({row.title for row in rows}) == len(rows)


ROW = """
base = "../base.toml"

[experiment]
title = "{title}"
position = {position}
{sources}
"""


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder with one table, ``tiny``, in place of the shipped ones; results and runs go beside it."""
    folder = tmp_path / "experiments"
    (folder / "tiny").mkdir(parents=True)
    tiny_training.write_config(folder / "base.toml")

    def write(name, position, stage, sources=""):
        text = ROW.format(title=name.upper(), position=position, sources=sources) + stage
        (folder / "tiny" / f"{name}.toml").write_text(text)

    write("float", 0, tiny_training.stage("float", iterations=3))
    write(
        "low",
        1,
        tiny_training.stage("w2a2", (2, 2), 3, distillation=1.0, evaluate=False),
        'start = "tiny/float"\nteacher = "tiny/float"',
    )
    write("wild", 2, tiny_training.stage("wild", (4, 1), 5, 1e30), 'start = "tiny/float"')
    monkeypatch.setattr(experiments, "EXPERIMENTS", folder)
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture
def run(tables, tiny_data):
    """Call `run` with a row or table, and further options; the result of the command."""

    def call(name, *options, exit_code=0):
        arguments = ["run", name, *options, "--data", str(tiny_data.parent), "--runs", str(tables / "runs")]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == exit_code, result.output
        return result

    return call


def show(*arguments):
    return CliRunner().invoke(main, ["show", *arguments])


def result_of(tables, row):
    return json.loads((tables / "results" / "tiny" / f"{row}.json").read_text())


class TestRun:
    def test_a_row_is_trained_after_what_it_starts_from_and_measured_by_the_engine(self, tables, run):
        trained = run("tiny/low").stderr
        assert trained.index("== tiny/float") < trained.index("== tiny/low")
        assert not (tables / "results" / "tiny" / "float.json").exists(), "it was not asked for"
        result = result_of(tables, "low")
        assert result["measured_by"] == "bitseg" and result["dataset"] == "voc7 val" and result["photos"] == 2
        assert 0 <= result["miou"] <= 1 and 0 <= result["pixel_accuracy"] <= 1
        assert result["bits"] == [2, 2] and list(result["iou"]) == result["classes"] and len(result["classes"]) == 7
        assert (result["row"], result["title"], result["seed"]) == ("tiny/low", "LOW", 3)
        assert result["config"]["stages"][0]["distillation"] == 1.0
        assert result["experiment"]["teacher"] == "tiny/float"
        assert result["commit"] and len(result["date"]) == 10

        # The row in floating point is trained already: it is measured as it was by the run. The other has its result.
        (tables / "results" / "tiny" / "low.json").write_text('{"miou": 0.125}')
        assert "==" not in run("tiny/float").stderr
        assert result_of(tables, "float")["measured_by"] == "PyTorch"
        assert run("tiny/low").output == "" and result_of(tables, "low") == {"miou": 0.125}

    def test_a_run_that_was_stopped_goes_on(self, tables, run, monkeypatch):
        with monkeypatch.context() as context:
            stop_after(context, 2)
            assert isinstance(run("tiny/float", exit_code=1).exception, Stopped)
        assert not (tables / "results").exists()
        assert "continuing after 2 iterations" in run("tiny/float").stderr
        assert result_of(tables, "float")["miou"] is not None

    def test_a_checkpoint_of_another_configuration_is_not_taken_for_the_rows(self, tables, run):
        run("tiny/float")
        path = tables / "experiments" / "tiny" / "float.toml"
        path.write_text(path.read_text().replace("iterations = 3", "iterations = 30"))
        for row in ("tiny/low", "tiny/float"):
            (tables / "results" / "tiny" / "float.json").unlink(missing_ok=True)
            assert "float.pt: stage 'float' has begun and can no longer change" in run(row, exit_code=1).stderr
        assert not (tables / "results" / "tiny" / "float.json").exists()

    def test_another_seed_trains_the_row_and_what_it_starts_from_once_more(self, tables, run):
        run("tiny/low")
        trained = run("tiny/low", "--seed", "9").stderr
        assert trained.index("== seed-9/tiny/float") < trained.index("== seed-9/tiny/low")
        own, other = result_of(tables, "low"), result_of(tables, "low.seed-9")
        assert (own["seed"], other["seed"]) == (3, 9) and own["row"] == other["row"] == "tiny/low"
        assert other["config"] == {**own["config"], "seed": 9}
        assert other["iou"] != own["iou"], "another seed, another network"
        assert run("tiny/low", "--seed", "9").output == run("tiny/low", "--seed", "3").output == "", "both are there"

    def test_tables_show_the_mean_over_the_seeds(self, tables):
        def write(row, miou, cat, **changes):
            config = Row("tiny/float").config.as_dict() | changes
            result = {"bits": [2, 2], "classes": ["cat"], "config": config, "miou": miou}
            if miou is not None:
                result |= {"pixel_accuracy": 0.9 - miou, "iou": {"cat": cat}, "measured_by": "bitseg"}
            path = tables / "results" / "tiny" / f"{row}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result))

        def cells(line):
            return [cell.strip() for cell in line.split("|")[1:-1]]

        write("float", 0.5, 0.6)
        write("low", 0.5, 0.25)
        write("low.seed-10", 0.6, 0.65)
        write("low.seed-2", 0.7, 0.75)
        write("lower.seed-2", 0.1, 0.1)  # another row's
        low = cells(show("tiny").stdout.splitlines()[3])
        assert low[:5] == ["LOW", "2-2", "60.0", "50.0, 70.0, 60.0", "30.0"] and low[-1] == "bitseg"
        assert cells(show("tiny", "--classes").stdout.splitlines()[2]) == ["cat", "60.0", "55.0"]
        for diverged, each in (("low.seed-10", "50.0, 70.0, -"), ("low", "-, 70.0, -")):
            write(diverged, None, None)
            low = cells(show("tiny").stdout.splitlines()[3])
            assert low[2:5] == ["-", each, "-"] and low[-1] == "bitseg, diverged"

        write("low.seed-2", 0.7, 0.75, seed=2)
        assert show("tiny").exit_code == 0
        write("low.seed-2", 0.7, 0.75, batch_size=6)
        result = show("tiny")
        assert result.exit_code == 1
        assert "tiny/low: its seeds were trained with different configurations; run them again" in result.stderr

    def test_a_row_that_diverges_is_recorded_as_such_and_the_table_goes_on(self, tables, run):
        shutil.move(tables / "experiments" / "tiny" / "low.toml", tables / "low.toml")
        run("tiny")
        result = result_of(tables, "wild")
        assert result["miou"] is None and result["diverged"].startswith("the loss is ")
        shutil.move(tables / "low.toml", tables / "experiments" / "tiny" / "low.toml")
        assert "==" not in run("tiny/wild").stderr, "a result like any other"

        lines = show("tiny").stdout.splitlines()
        header, _, first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4])
        assert header[:5] == ["row", "bits", "mIoU", "each seed", "pixel accuracy"] and header[-1] == "measured by"
        assert first[:2] == ["FLOAT", "32-32"] and first[-1] == "PyTorch"
        assert first[2] == first[3] == f"{100 * result_of(tables, 'float')['miou']:.1f}"
        assert second[:5] == ["WILD", "4-1", "-", "-", "-"] and second[-1] == "diverged"
        assert lines[4:] == ["", "Not measured yet: LOW."]

        table = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in show("tiny", "--classes").stdout.split("\n")
        ]
        assert table[0] == ["class", "FLOAT", "WILD"]
        cat = next(line for line in table if line[0] == "cat")
        assert cat[1:] == [f"{100 * result_of(tables, 'float')['iou']['cat']:.1f}", "-"]
        assert next(line for line in table if line[0] == "**mean**")[2] == "**-**"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["show", "nothing"], "there is no table 'nothing': choose one of tiny"),
            (["show", "tiny"], "none of its rows has a result yet: run it first"),
            (["run", "tiny/nothing"], "nothing.toml: cannot be read"),
            (["run", "tiny/float", "--data", "nowhere"], "nowhere/voc7: there is no such folder; check its name"),
            (["run", "tiny/encoder"], "tiny/encoder starts from a pretrained encoder: give --pretrained"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, tables, arguments, message):
        row = ROW.format(title="e", position=3, sources="pretrained = true") + tiny_training.stage("float")
        (tables / "experiments" / "tiny" / "encoder.toml").write_text(row)
        runs = ["--runs", str(tables / "runs")] if arguments[0] == "run" else []
        result = CliRunner().invoke(main, [*arguments, *runs])
        assert result.exit_code == 1
        assert message in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


class TestDocumentation:
    @pytest.mark.parametrize("table", ["bits", "decay", "options", "reconstruction", "losses", "initialisation"])
    def test_tables_are_what_the_results_say(self, table):
        assert show(table).stdout in (ROOT / "docs" / "training.md").read_text()

    @pytest.mark.parametrize("table", ["voc7", "camvid"])
    @pytest.mark.parametrize("page", ["README.md", "weights/README.md"])
    def test_ious_are_what_the_results_say(self, page, table):
        assert show(table, "--classes").stdout in (ROOT / page).read_text()
