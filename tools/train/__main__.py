"""Command line of the training code."""

import shlex
import sys
from pathlib import Path

import click

from bitseg.cli.signals import end_when_asked
from bitseg.errors import BitsegError
from bitseg.files import write_safely

from .errors import TrainingError


@click.command(context_settings={"show_default": True})
@click.argument("config", type=click.Path())
@click.option("--data", required=True, type=click.Path(), help="Folder of the data set.")
@click.option("--output", required=True, type=click.Path(), help="Folder of the run; a run found there is continued.")
@click.option("--pretrained", type=click.Path(), help="Folded ResNet (.npz) to start the encoder from.")
@click.option("--start", type=click.Path(), help="Checkpoint or model file (.h5) to take all weights from.")
@click.option("--teacher", type=click.Path(), help="Checkpoint or model file (.h5) for stages with distillation.")
@click.option("--workers", default=1, type=click.IntRange(min=0), help="Processes that make batches.")
def main(config, data, output, pretrained, start, teacher, workers):
    """Train the network that the TOML file CONFIG describes, stage by stage.

    The run's folder receives config.toml, which is CONFIG with what its base adds, a checkpoint of every finished
    stage, and checkpoint.pt, from which the same command continues a run that stopped. Stages that have not begun may
    change in between. Started by torchrun, the processes share out every batch.
    """
    # PyTorch takes seconds: help and mistyped options need not wait for it.
    import tomli_w

    from . import distributed
    from .config import read_config, read_toml
    from .folder import held_folder
    from .trainer import Trainer

    command = f"python -m tools.train {shlex.join(sys.argv[1:])}"
    end_when_asked()
    try:
        distributed.join_processes()
        settings = read_config(config, data)
        with held_folder(output):
            trainer = Trainer(settings, data, Path(output), command, pretrained, start, teacher, workers)
            if distributed.rank() == 0:
                with write_safely(Path(output, "config.toml"), TrainingError) as file:
                    tomli_w.dump(read_toml(config), file)
            trainer.run()
    except BitsegError as error:
        raise click.ClickException(str(error)) from None
    finally:
        distributed.leave_processes()


if __name__ == "__main__":
    main(prog_name="python -m tools.train")
