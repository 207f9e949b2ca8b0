"""The command line ``bitseg``: one module for each command or two, which parses, calls and prints.

Commands import what they need when they run, so that ``bitseg --help`` is quick.
"""

import atexit
import errno
import gc
import io
import os
import sys
import warnings

import click

from .. import __version__
from ..errors import BitsegError
from .bench import bench
from .common import abandon_standard_output
from .doctor import doctor, warmup
from .evaluate import evaluate
from .models import info, models
from .predict import predict
from .signals import INTERRUPTED, end_when_asked, interrupted
from .stream import stream

_OF_WRITING = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EAGAIN}


class _Commands(click.Group):
    """Commands that report an error the user can mend as one line, without a traceback."""

    def main(self, *args, **kwargs):
        if sys.stderr is None:
            # It was closed; click and progress bars would write to standard output instead, among the result.
            sys.stderr = open(os.devnull, "w")
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            reason = f"the operating system refuses ({error})"
            if error.errno in _OF_WRITING:
                # Of standard output: whatever opens a file names it in an error of its own.
                abandon_standard_output()
                reason = f"standard output: cannot be written ({error.strerror})"
            click.echo(f"Error: {' '.join(reason.splitlines())}", err=True)
            sys.exit(1)

    def resolve_command(self, context, args):
        name = args[0]  # click takes it away where it looks like an option
        try:
            return super().resolve_command(context, args)
        except click.UsageError:
            if os.path.exists(name):
                photo = f"./{name}" if name.startswith("-") else name
                raise click.UsageError(f"'{name}' is no command; for a photo: bitseg predict {photo}") from None
            raise

    def invoke(self, context):
        try:
            return super().invoke(context)
        except BitsegError as error:
            raise click.ClickException(" ".join(str(error).splitlines())) from error
        except MemoryError as error:
            raise click.ClickException("not enough memory; give a smaller size") from error
        except KeyboardInterrupt:
            click.echo(interrupted(), err=True)
            context.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="bitseg")
def main():
    """Find out what every pixel of a photo belongs to, with low-bit networks on an ordinary CPU."""
    # Python would look for garbage among all that Numba has made once more at exit, for a tenth of a second.
    atexit.register(gc.freeze)
    end_when_asked()
    # NumPy's matrix products are not needed, and OpenBLAS ends the process where it gets no threads for them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # On a damaged or very large file; the error, if it comes to one, says it in one line.
    warnings.filterwarnings("ignore", module="PIL")
    # A name may hold what the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


for command in (predict, stream, models, info, evaluate, bench, warmup, doctor):
    main.add_command(command)
