"""The command ``bitseg``, run as users run it."""

import subprocess
import sys


def bitseg(*arguments, text=True, **options):
    """Run the command in a process of its own.

    Parameters
    ----------
    *arguments
        Of the command; anything that `str` makes one.
    text : bool
        Whether its input and output are text.
    **options
        For `subprocess.run`.

    Returns
    -------
    subprocess.CompletedProcess
    """
    options = {"stdin": subprocess.DEVNULL, **options} if "input" not in options else options
    return subprocess.run([*command(), *map(str, arguments)], **{"capture_output": True, "text": text, **options})


def command():
    """The words that start the command, for `subprocess.Popen`."""
    return [sys.executable, "-m", "bitseg"]


def assert_one_clear_line(result, *words):
    """A command failed, said so in one line that holds these words, and printed nothing else."""
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    for word in words:
        assert str(word) in result.stderr
