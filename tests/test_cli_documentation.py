"""`docs/command-line.md` runs as written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import bitseg

from bitseg.cli import main
from bitseg.cli.predict import KINDS
from bitseg.images import OUTPUT_FORMATS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
WRITTEN = {
    "bitseg predict photo.jpg -o mask.png": "mask.png overlay.jpg photo.cutout.png photo.mask.png",
    "bitseg predict photos --recursive": (
        "masks/astronaut.mask.png masks/cats/chelsea.mask.png photos/astronaut.mask.png"
    ),
    "cat photo.jpg": "mask.png",
    "ffmpeg": "segmented.mp4",
    "completion": "",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with what the document assumes, and the commands in a folder of their own."""
    (tmp_path / "commands").mkdir()
    put_command(tmp_path, "bitseg", sys.executable, "-m", "bitseg")
    shutil.copy(ROOT / "examples" / "chelsea.jpg", tmp_path / "photo.jpg")
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "astronaut.jpg", tmp_path / "photos")
    shutil.copy(ROOT / "examples" / "chelsea.jpg", tmp_path / "photos" / "cats")
    return tmp_path


def put_command(folder, name, *words):
    path = folder / "commands" / name
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)


def run(shell, script, folder):
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    path = os.pathsep.join([str(folder / "commands"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": python_path}
    result = subprocess.run([*shell, script], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("script", [script for language, script in BLOCKS if language == "sh"])
def test_commands_run_as_written(folder, request, script):
    if "ffmpeg" in script:
        ffmpeg = request.getfixturevalue("ffmpeg")
        put_command(folder, "ffmpeg", ffmpeg)
        video = ["-loop", "1", "-i", folder / "photo.jpg", "-vf", "scale=400:300", "-t", "0.2", folder / "video.mp4"]
        subprocess.run([ffmpeg, "-loglevel", "error", *video], check=True)
    before = files(folder)
    run(["bash", "-euo", "pipefail", "-c"], script, folder)
    (written,) = (names for start, names in WRITTEN.items() if start in script)
    assert files(folder) - before == set(written.split())


@pytest.mark.parametrize(
    "shell, check",
    [("bash", "complete -p bitseg"), ("zsh", "whence _bitseg_completion"), ("fish", "complete -c bitseg")],
)
def test_shell_completion_can_be_installed(folder, shell, check):
    if shutil.which(shell) is None:
        pytest.skip(f"needs the shell {shell}")
    (script,) = (script for language, script in BLOCKS if language == shell)
    prepare = "autoload -U compinit && compinit -u\n" if shell == "zsh" else ""
    assert "bitseg" in run([shell, "-c"], f"{prepare}{script}\n{check}", folder)


@pytest.mark.parametrize(
    "words, completion",
    [
        ("bitseg pre", "plain,predict"),
        ("bitseg predict --as over", "plain,overlay"),
        ("bitseg predict -m voc7-w2", "plain,voc7-w2a2"),
        ("bitseg predict -m weights/", "file,weights/"),
        ("bitseg info voc7-w2", "plain,voc7-w2a2"),
        ("bitseg predict pho", "file,pho"),
    ],
)
def test_shells_are_offered_commands_values_models_and_files(words, completion):
    variables = {"_BITSEG_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert bitseg(env={**os.environ, **variables}).stdout.split() == [completion]


def test_every_command_and_kind_is_in_its_table():
    assert {f"`bitseg {name}" in TEXT for name in main.commands} == {True}
    for kind in KINDS:
        (row,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{kind}`"))
        endings = [ending for ending in OUTPUT_FORMATS[kind] if ending != ".jpeg"]
        assert row.split(" | ")[-1].rstrip(" |") == ", ".join(f"`{ending}`" for ending in endings)
