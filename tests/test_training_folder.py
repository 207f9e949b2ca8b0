"""The folder of a run: one process at a time trains in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training  # noqa: F401 - skips without PyTorch

from tools.train.errors import TrainingError
from tools.train.folder import held_folder

pytest.importorskip("fcntl", reason="nobody is kept out on Windows")

ROOT = Path(__file__).parents[1]

HOLD = """
import os, sys, time
from tools.train.folder import held_folder
with held_folder(sys.argv[1]):
    print("held", flush=True)
    {}
"""


def process(folder, while_held):
    """Another process that holds a folder, and has said so."""
    command = [sys.executable, "-c", HOLD.format(while_held), str(folder)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    return other


def enter(folder):
    with held_folder(folder):
        pass


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.communicate], ids=["killed", "done"])
def test_another_process_is_kept_out_until_the_first_one_has_ended(tmp_path, end):
    folder = tmp_path / "runs" / "own"
    with process(folder, "sys.stdin.read()") as first:
        with pytest.raises(TrainingError, match="own: another process is training there; wait for it, or choose"):
            enter(folder)
        enter(tmp_path / "another")
        end(first)
    enter(folder)


def test_the_folder_is_free_afterwards_though_the_process_goes_on(tmp_path):
    enter(tmp_path)
    with process(tmp_path, "pass") as other:
        other.communicate()
        assert other.returncode == 0
    enter(tmp_path)


def test_a_process_that_the_first_one_forked_holds_nothing(tmp_path):
    """As those that make batches, which may outlive a run that is killed."""
    fork = "child = os.fork(); child or time.sleep(30); child and print(child, flush=True); child and sys.stdin.read()"
    with process(tmp_path, fork) as first:
        child = int(first.stdout.readline())
        first.kill()
        first.wait()
        try:
            enter(tmp_path)
        finally:
            os.kill(child, 9)


def test_a_folder_that_cannot_be_made_or_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file: cannot be made a folder \(File exists\); choose another folder"):
        enter(tmp_path / "file")
    (tmp_path / ".lock").mkdir()
    with pytest.raises(TrainingError, match=r"cannot be written to \(Is a directory\); choose another folder"):
        enter(tmp_path)
