"""The command line ``bitseg``: one module for each command or two, which parses, calls and prints.

Commands import what they need when they run, so that ``bitseg --help`` is quick.
"""

import warnings

import click

from .. import __version__
from ..errors import BitsegError
from .bench import bench
from .doctor import doctor, warmup
from .evaluate import evaluate
from .models import info, models
from .predict import predict


class _Commands(click.Group):
    """Commands that report an error the user can mend as one line, without a traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except BitsegError as error:
            raise click.ClickException(" ".join(str(error).splitlines())) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="bitseg")
def main():
    """Find out what every pixel of a photo belongs to, with low-bit networks on an ordinary CPU."""
    # On a damaged or very large file; the error, if it comes to one, says it in one line.
    warnings.filterwarnings("ignore", module="PIL")


for command in (predict, models, info, evaluate, bench, warmup, doctor):
    main.add_command(command)
