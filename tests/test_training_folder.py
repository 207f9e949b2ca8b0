"""The folder of a run: one process at a time trains in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.train.errors import TrainingError
from tools.train.folder import hold_folder

ROOT = Path(__file__).parent.parent

HOLD = "import sys; from tools.train.folder import hold_folder; hold_folder(sys.argv[1]); print('held', flush=True)"


def test_another_process_is_kept_out_until_the_first_one_has_ended(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", f"{HOLD}; sys.stdin.read()", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match="run: another process is training there; choose another --output"):
            hold_folder(folder)
        hold_folder(tmp_path / "another")
        first.kill()
    hold_folder(folder)
    # The same process may go on with its own run, under any name of the folder.
    hold_folder(folder / ".." / "run")
    second = subprocess.run(command, cwd=ROOT, input="", capture_output=True, text=True)
    assert second.returncode == 1 and "another process is training there" in second.stderr


def test_a_process_that_the_first_one_forked_holds_nothing(tmp_path):
    """As those that make batches, which may outlive a run that is killed."""
    fork = "import os, time; child = os.fork(); child or time.sleep(30); child and print(child, flush=True)"
    command = [sys.executable, "-c", f"{HOLD}; {fork}", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        child = int(first.stdout.readline())
        first.wait()
        try:
            hold_folder(tmp_path)
        finally:
            os.kill(child, 9)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions mean nothing to root")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(TrainingError, match="cannot be written to"):
        hold_folder(tmp_path)
