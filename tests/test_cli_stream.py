"""``bitseg stream``: raw frames in, frames out."""

import os
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import bitseg, command
from PIL import Image

from bitseg import segmenter as segmenter_module
from bitseg.cli import main
from bitseg.images import read_image, resize
from bitseg.segmenter import DEFAULT_MODEL

EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH, HEIGHT = 150, 100
SIZE = f"{WIDTH}x{HEIGHT}"
load = cache(segmenter_module.load)


@pytest.fixture
def stream(monkeypatch):
    """A function that runs `bitseg stream` in this process, where models stay loaded."""
    monkeypatch.setattr(segmenter_module, "load", load)

    def run(*arguments, input):
        words = ["stream", "--size", SIZE, *map(str, arguments)]
        return CliRunner().invoke(main, words, input=input, prog_name="bitseg", catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def frames():
    """A cat and an astronaut, turn about, each moving a little."""
    cat, astronaut = (resize(read_image(EXAMPLES / name), (HEIGHT, WIDTH)) for name in ("chelsea.jpg", "astronaut.jpg"))
    return [np.roll(picture, 3 * i, axis=1) for i in range(4) for picture in (cat, astronaut)]


def bytes_of(frames):
    return b"".join(frame.tobytes() for frame in frames)


def label_maps(content):
    return list(np.frombuffer(content, np.uint8).reshape(-1, HEIGHT, WIDTH))


def test_label_maps_come_in_the_order_of_the_frames(frames):
    result = bitseg("stream", "--size", SIZE, "--as", "mask", text=False, input=bytes_of(frames))
    assert result.returncode == 0, result.stderr
    expected = [load(DEFAULT_MODEL).predict(frame).mask for frame in frames]
    np.testing.assert_array_equal(label_maps(result.stdout), expected)
    assert result.stderr.startswith(b"8 frames in ") and result.stderr.endswith(b" frames/s\n")


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_jobs_do_not_change_the_label_maps(stream, frames, jobs):
    result = stream("--as", "mask", "--jobs", jobs, input=bytes_of(frames))
    assert result.exit_code == 0
    expected = [load(DEFAULT_MODEL).predict(frame).mask for frame in frames]
    np.testing.assert_array_equal(label_maps(result.stdout_bytes), expected)


def test_overlays_are_the_tinted_frames(stream, frames):
    result = stream("--opacity", 0.7, "--classes", "cat", "--palette", "voc", input=bytes_of(frames))
    expected = [
        load(DEFAULT_MODEL, palette="voc").predict(frame).keep("cat").overlay(0.7, legend=False) for frame in frames
    ]
    assert result.stdout_bytes == bytes_of(expected)


def test_working_size_is_that_of_the_network(stream, frames):
    result = stream("--as", "mask", "--working-size", 64, input=bytes_of(frames))
    expected = [load(DEFAULT_MODEL).predict(frame, size=64).mask for frame in frames]
    np.testing.assert_array_equal(label_maps(result.stdout_bytes), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 3)])
def test_frames_of_any_size(stream, size):
    width, height = size
    result = stream("--size", f"{width}x{height}", input=bytes(3 * width * height * 3))
    assert result.exit_code == 0 and len(result.stdout_bytes) == 3 * width * height * 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_too_little_memory_is_one_line(stream, frames, monkeypatch, jobs):
    def predict_without_memory(*_):
        raise MemoryError

    monkeypatch.setattr("bitseg.segmenter.Segmenter.predict", predict_without_memory)
    result = stream("--jobs", jobs, input=bytes_of(frames))
    assert result.exit_code == 1 and result.stderr == "Error: not enough memory; give a smaller size\n"


def test_quiet_says_nothing(stream, frames):
    assert stream("--quiet", input=bytes_of(frames[:1])).stderr == ""


def test_one_job_answers_each_frame_before_it_reads_the_next(frames):
    words = [*command(), "stream", "--size", SIZE, "--as", "mask", "--jobs", "1", "--quiet"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for frame in frames[:3]:
        process.stdin.write(frame.tobytes())
        process.stdin.flush()
        assert len(process.stdout.read(WIDTH * HEIGHT)) == WIDTH * HEIGHT
    process.stdin.close()
    assert process.stdout.read() == b"" and process.wait() == 0


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_incomplete_last_frame_is_reported_after_the_whole_ones(stream, frames, jobs):
    content = bytes_of(frames)[:-1000]
    result = stream("--as", "mask", "--jobs", jobs, input=content)
    assert result.exit_code == 1 and len(label_maps(result.stdout_bytes)) == len(frames) - 1
    mend = "are the frames rgb24 of 150x100?"
    assert result.stderr == f"Error: standard input: ended within frame 8, after 44000 of its 45000 bytes; {mend}\n"


def test_no_frame_is_reported(stream):
    result = stream(input=b"")
    assert result.exit_code == 1 and result.stdout_bytes == b"" and "no frame came" in result.stderr


def write_to(stdout, frames):
    options = {"capture_output": False, "stdout": stdout, "stderr": subprocess.PIPE}
    return bitseg("stream", "--size", SIZE, text=False, input=bytes_of(frames), **options)


def test_a_reader_that_is_gone_ends_the_stream(frames):
    reader, writer = os.pipe()
    os.close(reader)
    result = write_to(writer, frames)
    os.close(writer)
    assert result.returncode == 1 and result.stderr == b"Error: standard output: cannot be written (Broken pipe)\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_stream(frames):
    with open("/dev/full", "wb") as full:
        result = bitseg(
            *("stream", "--size", SIZE),
            text=False,
            input=bytes_of(frames),
            capture_output=False,
            stdout=full,
            stderr=-1,
        )
    assert result.returncode == 1 and b"No space left on device" in result.stderr and result.stderr.count(b"\n") == 1


def test_mistyped_class_is_reported_before_a_frame_is_read(stream, frames):
    result = stream("--classes", "catt", input=bytes_of(frames))
    assert result.exit_code == 1 and result.stdout_bytes == b"" and "did you mean 'cat'?" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--size", "150"],
        ["--size", "0x5"],
        ["--size", "9x65536"],
        ["--size", SIZE, "--as", "cutout"],
        ["--size", SIZE, "-j", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    result = CliRunner().invoke(main, ["stream", *arguments], prog_name="bitseg")
    assert result.exit_code == 2 and "Usage: bitseg stream" in result.stderr


def test_a_video_through_ffmpeg(tmp_path, ffmpeg):
    with Image.open(EXAMPLES / "chelsea.jpg") as photo:
        photo.crop((0, 0, 450, 300)).save(tmp_path / "cat.png")
    quietly = [ffmpeg, "-loglevel", "error", "-y"]
    moving = "zoompan=z='1+on/50':d=1:s=300x200:fps=10"
    source = ["-loop", "1", "-i", tmp_path / "cat.png", "-vf", moving, "-t", "1", "-pix_fmt", "yuv420p"]
    subprocess.run([*quietly, *source, tmp_path / "in.mp4"], check=True)

    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    decode = [*quietly, "-i", tmp_path / "in.mp4", *raw, "-"]
    encode = [*quietly, *raw, "-s", "300x200", "-r", "10", "-i", "-", "-pix_fmt", "yuv420p", tmp_path / "out.mp4"]
    with subprocess.Popen(decode, stdout=subprocess.PIPE) as decoder:
        segment = subprocess.Popen(
            [*command(), "stream", "--size", "300x200"], stdin=decoder.stdout, stdout=subprocess.PIPE
        )
        subprocess.run(encode, stdin=segment.stdout, check=True)
        segment.stdout.close()
    assert decoder.wait() == segment.wait() == 0

    before, after = (
        subprocess.run([*quietly, "-i", tmp_path / name, *raw, "-"], capture_output=True, check=True).stdout
        for name in ("in.mp4", "out.mp4")
    )
    before, after = (np.frombuffer(video, np.uint8).reshape(-1, 200, 300, 3).astype(int) for video in (before, after))
    assert before.shape == after.shape and len(after) == 10
    # The cat fills most of the picture, and its colour, orange, lacks blue.
    assert (before - after)[..., 2].mean() > 20 > abs(before - after)[..., 0].mean() / 2
