"""``bitseg predict``: through the real command where that is what is tested, else in this process."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from commands import assert_one_clear_line, bitseg, command
from PIL import Image

from bitseg import segmenter as segmenter_module
from bitseg.cli import main
from bitseg.cli.common import ClassNames
from bitseg.cli.predict import KINDS
from bitseg.images import OUTPUT_FORMATS
from bitseg.kernels import cache as kernel_cache
from bitseg.model_file import installed_models
from bitseg.segmenter import DEFAULT_MODEL

EXAMPLES = Path(__file__).parents[1] / "examples"
CHELSEA, ASTRONAUT = EXAMPLES / "chelsea.jpg", EXAMPLES / "astronaut.jpg"
CAT, PERSON = 1, 5
ORIENTATION = 0x0112
load = cache(segmenter_module.load)


@pytest.fixture
def predict(monkeypatch):
    """A function that runs `bitseg predict` in this process, where models stay loaded."""
    monkeypatch.setattr(segmenter_module, "load", load)

    def run(*arguments, input=None):
        words = ["predict", *map(str, arguments)]
        return CliRunner().invoke(main, words, input=input, prog_name="bitseg", catch_exceptions=False)

    return run


@pytest.mark.parametrize("model", [DEFAULT_MODEL, "voc7-w2a3"])
def test_garbage_is_collected_again_once_the_model_is_loaded_or_not_found(predict, tmp_path, model):
    predict(CHELSEA, "-o", tmp_path / "mask.png", "-m", model)
    assert gc.isenabled()


@pytest.fixture(scope="module")
def chelsea(tmp_path_factory):
    """What `bitseg predict` prints for a photo of a cat, and the mask that it writes."""
    output = tmp_path_factory.mktemp("chelsea") / "mask.png"
    result = bitseg("predict", CHELSEA, "-o", output)
    assert result.returncode == 0, result.stderr
    return result.stdout, output


@pytest.fixture
def album(tmp_path):
    """A folder of two photos, one of them below it, one that is damaged, and one that is none."""
    folder = tmp_path / "album"
    (folder / "space").mkdir(parents=True)
    (folder / "cat.jpg").write_bytes(CHELSEA.read_bytes())
    (folder / "space" / "cat.jpg").write_bytes(ASTRONAUT.read_bytes())
    (folder / "cut.jpg").write_bytes(CHELSEA.read_bytes()[:20000])
    (folder / "text.png").write_text("not a photo")
    return folder


@pytest.fixture
def model_bytes():
    (path,) = (path for path in installed_models() if path.stem == DEFAULT_MODEL)
    return path.read_bytes()


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def files(folder):
    return sorted(str(path.relative_to(folder)).replace(os.sep, "/") for path in folder.rglob("*") if path.is_file())


# One photo


def test_mask_has_the_size_of_the_photo_and_holds_class_ids(chelsea):
    _, output = chelsea
    with Image.open(output) as mask, Image.open(CHELSEA) as photo:
        assert mask.mode == "P" and mask.size == photo.size
        shares = np.bincount(np.asarray(mask).ravel(), minlength=7) / (mask.width * mask.height)
    assert len(shares) == 7 and shares[CAT] > 0.2


def test_found_classes_and_time_are_printed(chelsea):
    stdout, output = chelsea
    lines = [line.split(maxsplit=1) for line in stdout.splitlines()]
    values = dict(lines)
    assert values["cat"].endswith("%") and values["time"].endswith(" s") and values["mask"] == str(output)
    shares = [float(value.rstrip("%")) for _, value in lines[:-2]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


def test_quiet_prints_nothing(tmp_path, predict):
    result = predict(CHELSEA, "-o", tmp_path / "mask.png", "--quiet")
    assert result.exit_code == 0 and result.output == ""
    assert files(tmp_path) == ["mask.png"]


def test_output_lands_beside_the_photo_by_default(tmp_path, predict):
    photo = tmp_path / "my.photo.jpg"
    photo.write_bytes(CHELSEA.read_bytes())
    assert predict(photo).exit_code == 0
    assert predict(photo, "--overlay").exit_code == 0
    assert files(tmp_path) == ["my.photo.jpg", "my.photo.mask.png", "my.photo.overlay.png"]


def test_kinds_are_those_that_a_result_can_be_saved_as():
    assert list(KINDS) == list(OUTPUT_FORMATS)


def test_color_is_the_mask_in_class_colours(tmp_path, chelsea):
    output = tmp_path / "color.png"
    assert bitseg("predict", CHELSEA, "--as", "color", "-o", output).returncode == 0
    with Image.open(output) as color, Image.open(chelsea[1]) as mask:
        assert color.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(color), np.asarray(mask.convert("RGB")))


@pytest.mark.parametrize("option", [("--as", "overlay"), ("--overlay",)])
def test_overlay_is_the_tinted_photo(tmp_path, chelsea, option):
    output = tmp_path / "overlay.jpg"
    assert bitseg("predict", CHELSEA, *option, "-o", output).returncode == 0
    with Image.open(output) as overlay, Image.open(CHELSEA) as photo:
        assert overlay.format == "JPEG" and overlay.mode == "RGB" and overlay.size == photo.size
    difference = np.abs(read(output).astype(int) - read(CHELSEA)).max(axis=2)
    is_background = read(chelsea[1]) == 0
    assert difference[~is_background].mean() > 3 * difference[is_background].mean()


def test_opacity_is_the_strength_of_the_tint(tmp_path, predict, chelsea):
    is_cat = read(chelsea[1]) == CAT
    differences = []
    for opacity in (0.1, 0.9):
        output = tmp_path / "overlay.png"
        assert predict(CHELSEA, "--overlay", "--opacity", opacity, "-o", output).exit_code == 0
        differences.append(np.abs(read(output).astype(int) - read(CHELSEA))[is_cat].mean())
    assert differences[1] > 4 * differences[0]


def test_cutout_is_transparent_where_the_mask_is_background(tmp_path, chelsea):
    output = tmp_path / "cutout.png"
    assert bitseg("predict", CHELSEA, "--as", "cutout", "-o", output).returncode == 0
    with Image.open(output) as cutout:
        assert cutout.mode == "RGBA"
        alpha = np.asarray(cutout)[:, :, 3]
    mask = read(chelsea[1])
    assert (alpha[mask == 0] == 0).all() and (alpha[mask == CAT] > 0).all() and (alpha[mask == CAT] == 255).mean() > 0.9


def test_json_says_where_each_class_is(tmp_path, chelsea):
    output = tmp_path / "cat.json"
    assert bitseg("predict", CHELSEA, "--as", "json", "-o", output).returncode == 0
    report = json.loads(output.read_text())
    mask = read(chelsea[1])
    assert (report["width"], report["height"]) == (mask.shape[1], mask.shape[0])
    (cat,) = (found for found in report["classes"] if found["name"] == "cat")
    rows, columns = np.nonzero(mask == CAT)
    assert cat["pixels"] == len(rows) and cat["share"] == pytest.approx(len(rows) / mask.size)
    size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert cat["bbox"] == [columns.min(), rows.min(), *size] and cat["rle"]["size"] == list(mask.shape)


def test_scores_are_what_the_mask_is_made_of(tmp_path, predict):
    output = tmp_path / "scores.npz"
    assert bitseg("predict", CHELSEA, "--size", "native", "--as", "scores", "-o", output).returncode == 0
    with np.load(output) as content:
        scores, names = content["scores"], content["class_names"]
    assert predict(CHELSEA, "--size", "native", "-o", tmp_path / "mask.png").exit_code == 0
    mask = read(tmp_path / "mask.png")
    assert scores.shape == (7, -(-mask.shape[0] // 4), -(-mask.shape[1] // 4)) and scores.dtype == np.float32
    assert names[CAT] == "cat"
    assert (scores.argmax(axis=0) == mask[::4, ::4]).mean() > 0.95


def test_classes_that_are_not_kept_become_background(tmp_path, predict, chelsea):
    assert predict(CHELSEA, "--classes", "dog, person", "-o", tmp_path / "mask.png").exit_code == 0
    mask, all_classes = read(tmp_path / "mask.png"), read(chelsea[1])
    np.testing.assert_array_equal(mask, np.where(np.isin(all_classes, (3, PERSON)), all_classes, 0))
    assert predict(CHELSEA, "--classes", "cat", "-o", tmp_path / "mask.png").exit_code == 0
    np.testing.assert_array_equal(read(tmp_path / "mask.png"), np.where(all_classes == CAT, CAT, 0))


def test_palettes_change_colours_and_not_classes(tmp_path, predict):
    masks, colors = [], []
    for palette in ("safe", "voc", "cityscapes", "model"):
        assert predict(CHELSEA, "--palette", palette, "-o", tmp_path / "mask.png").exit_code == 0
        with Image.open(tmp_path / "mask.png") as mask:
            masks.append(mask.tobytes())
            colors.append(tuple(mask.getpalette()[3 * CAT : 3 * CAT + 3]))
    assert len(set(masks)) == 1 and colors[0] != colors[1] == (64, 0, 0)


def test_rotated_photo_gets_the_mask_of_the_upright_one(tmp_path, predict, chelsea):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with Image.open(CHELSEA) as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    assert predict(tmp_path / "rotated.png", "-o", tmp_path / "mask.png").exit_code == 0
    np.testing.assert_array_equal(read(tmp_path / "mask.png"), read(chelsea[1]))


@pytest.mark.parametrize("options", [("--threads", 1), ("--jobs", 1), ("--kernel", "popcount")])
def test_threads_and_kernels_do_not_change_the_mask(tmp_path, predict, chelsea, options):
    assert predict(CHELSEA, *options, "-o", tmp_path / "mask.png").exit_code == 0
    assert (tmp_path / "mask.png").read_bytes() == chelsea[1].read_bytes()


@pytest.mark.parametrize("size", ["64", "native"])
def test_mask_keeps_the_size_of_the_photo_at_any_working_size(tmp_path, predict, size):
    assert predict(CHELSEA, "--size", size, "-o", tmp_path / "mask.png").exit_code == 0
    with Image.open(tmp_path / "mask.png") as mask, Image.open(CHELSEA) as photo:
        assert mask.size == photo.size


def test_model_can_be_a_path(tmp_path, chelsea, model_bytes):
    (tmp_path / "mine.h5").write_bytes(model_bytes)
    assert bitseg("predict", CHELSEA, "-m", tmp_path / "mine.h5", "-o", tmp_path / "mask.png").returncode == 0
    assert (tmp_path / "mask.png").read_bytes() == chelsea[1].read_bytes()


# Standard input and output


@pytest.mark.parametrize("arguments", [["-"], ["/dev/stdin"], ["-", "-o", "-"], [CHELSEA, "-o", "-"]])
def test_standard_input_and_output(chelsea, arguments):
    with open(CHELSEA, "rb") as photo:
        result = bitseg("predict", *arguments, stdin=photo, text=False)
    assert result.returncode == 0 and result.stdout == chelsea[1].read_bytes()
    assert b"cat " in result.stderr and b"time " in result.stderr


def test_standard_input_with_an_output_folder(tmp_path, predict):
    assert predict("-", "-o", tmp_path / "out", input=CHELSEA.read_bytes()).exit_code == 0
    assert files(tmp_path) == ["out/stdin.mask.png"]


def test_standard_output_holds_the_result_alone_beside_other_photos(tmp_path, predict, chelsea):
    (tmp_path / "photo.jpg").write_bytes(ASTRONAUT.read_bytes())
    result = predict("-", tmp_path / "photo.jpg", input=CHELSEA.read_bytes())
    assert result.exit_code == 0 and result.stdout_bytes == chelsea[1].read_bytes()
    assert result.stderr.startswith("2 of 2 photos in ")


@pytest.mark.parametrize("content, reason", [(b"", "nothing came"), (b"text", "standard input: not a picture")])
def test_standard_input_without_a_photo(predict, content, reason):
    result = predict("-", input=content)
    assert result.exit_code == 1 and result.stdout == "" and reason in result.stderr


def test_closed_standard_input():
    result = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command(), "predict", "-"], capture_output=True, text=True)
    assert_one_clear_line(result, "standard input is closed")


def test_closed_standard_output():
    words = ["sh", "-c", '"$@" >&-', "sh", *command(), "predict", str(CHELSEA), "-o", "-"]
    assert_one_clear_line(subprocess.run(words, capture_output=True, text=True), "standard output is closed")


def test_without_standard_error_nothing_else_goes_to_standard_output(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}  # everything is compiled
    words = ["sh", "-c", '"$@" 2>&-', "sh", *command(), "predict", str(CHELSEA), "-o", "-"]
    content = subprocess.run(words, stdout=subprocess.PIPE, env=environment).stdout
    assert content.startswith(b"\x89PNG") and content == bitseg("predict", CHELSEA, "-o", "-", text=False).stdout
    for arguments, status in ((["missing.jpg", "-o", "-"], 1), (["--opacity", "2"], 2)):
        failed = subprocess.run([*words[:-3], *arguments], stdout=subprocess.PIPE)
        assert (failed.returncode, failed.stdout) == (status, b"")


def test_a_quiet_first_run_compiles_without_a_word(tmp_path, predict, capsys):
    for options, said in (((), "compiling"), (("--quiet",), "")):
        predict(CHELSEA, "-o", tmp_path / "mask.png", *options)
        kernel_cache._announce("once")  # as if something had to be compiled
        error = capsys.readouterr().err
        assert said in error if said else error == ""


def test_a_part_of_standard_output_is_not_taken_for_all(tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    words = ["sh", "-c", 'ulimit -f 8; "$@" > "$0"', tmp_path / "scores.npz", *command(), "predict", CHELSEA]
    words = [*map(str, words), "--as", "scores", "-o", "-"]
    result = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert_one_clear_line(result, "standard output: cannot be written")


def test_scores_have_all_classes():
    result = bitseg("predict", CHELSEA, "--as", "scores", "--classes", "cat", "-o", "-")
    assert result.returncode == 2 and "--classes is not for --as scores" in result.stderr


def test_a_terminal_neither_gives_photos_nor_shows_masks():
    _, end = pytest.importorskip("pty").openpty()
    assert_one_clear_line(bitseg("predict", "-", stdin=end), "standard input is the terminal")
    result = bitseg("predict", CHELSEA, "-o", "-", capture_output=False, stdout=end, stderr=subprocess.PIPE)
    os.close(end)
    assert result.returncode == 1 and result.stderr.startswith("Error: standard output is the terminal")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_to_a_full_disk():
    with open("/dev/full", "wb") as full:
        result = bitseg("predict", CHELSEA, "-o", "-", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == "Error: standard output: cannot be written (No space left on device)\n"


def test_standard_output_to_a_reader_that_is_gone():
    reader, writer = os.pipe()
    os.close(reader)
    result = bitseg("predict", CHELSEA, "-o", "-", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert result.returncode == 1 and result.stderr == "Error: standard output: cannot be written (Broken pipe)\n"


# Several photos


def test_a_folder_with_its_tree_and_its_damaged_photos(album, tmp_path):
    output = tmp_path / "out"
    result = bitseg("predict", album, "--recursive", "-o", output)
    assert result.returncode == 1
    assert files(output) == ["cat.mask.png", "space/cat.mask.png"]
    assert set(np.unique(read(output / "cat.mask.png"))) != set(np.unique(read(output / "space" / "cat.mask.png")))
    assert result.stdout.startswith("2 of 4 photos in ") and result.stdout.endswith(" photos/s\n")
    title, *lines = result.stderr.splitlines()
    assert title == "Error: 2 of 4 failed:"
    assert [line.split(": ")[0].strip() for line in lines] == [str(album / "cut.jpg"), str(album / "text.png")]
    assert "truncated" in lines[0] and "not a picture" in lines[1]


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs_do_not_change_the_results(album, tmp_path, predict, jobs):
    result = predict(album / "cat.jpg", album / "space", "-o", tmp_path / "out", "--jobs", jobs)
    assert result.exit_code == 1 and "would both become" in result.stderr
    (album / "space" / "cat.jpg").rename(album / "space" / "astronaut.jpg")
    assert predict(album / "cat.jpg", album / "space", "-o", tmp_path / "out", "--jobs", jobs).exit_code == 0
    for photo, mask in ((CHELSEA, "cat.mask.png"), (ASTRONAUT, "astronaut.mask.png")):
        np.testing.assert_array_equal(read(tmp_path / "out" / mask), load(DEFAULT_MODEL).predict(photo).mask)


def test_a_generic_cpu_gives_the_same_mask(tmp_path, chelsea):
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    result = bitseg("predict", CHELSEA, "-o", tmp_path / "mask.png", env=environment)
    assert result.returncode == 0 and "compiling" in result.stderr
    np.testing.assert_array_equal(read(tmp_path / "mask.png"), read(chelsea[1]))


def test_jobs_share_the_threads(album, predict, monkeypatch):
    loaded = []

    def spy(*arguments):
        segmenter = load(*arguments)
        loaded.append((segmenter.threads, segmenter.jobs))
        return segmenter

    monkeypatch.setattr(segmenter_module, "load", spy)
    for options in (("--threads", 6, "--jobs", 2), ("--threads", 2, "--jobs", 4), ("--threads", 6)):
        predict(album, *options)
    # There are three photos, so three jobs.
    assert loaded == [(6, 2), (2, 3), (6, 3)]


def test_missing_and_unreadable_photos_do_not_stop_the_rest(album, predict):
    result = predict("missing.jpg", album / "cat.jpg", "nothing*.jpg", "nowhere/cat.jpg")
    assert result.exit_code == 1 and (album / "cat.mask.png").exists()
    assert result.stderr.splitlines() == [
        "Error: 3 of 4 failed:",
        "  nothing*.jpg: matches no photo; check the pattern",
        "  missing.jpg: not found; check the path",
        "  nowhere/cat.jpg: not found; check the path",
    ]


def test_a_second_run_overwrites_the_results_and_takes_them_for_no_photos(album, predict):
    before = (album / "cat.jpg").read_bytes()
    for options in ((), ("--classes", "dog")):
        predict(album, "--quiet", *options)
        assert files(album) == ["cat.jpg", "cat.mask.png", "cut.jpg", "space/cat.jpg", "text.png"]
    assert CAT not in read(album / "cat.mask.png")
    assert (album / "cat.jpg").read_bytes() == before


def test_skip_existing_does_what_is_left(album, predict):
    (album / "cut.mask.png").write_bytes(b"done")
    (album / "text.png").unlink()
    result = predict(album, "--skip-existing")
    assert result.exit_code == 0 and files(album)[:2] == ["cat.jpg", "cat.mask.png"]
    assert (album / "cut.mask.png").read_bytes() == b"done"
    assert result.stdout.splitlines()[1] == "1 skipped: the mask exists already"
    assert predict(album, "--skip-existing").stdout == "2 skipped: the mask exists already\n"
    assert predict(album / "cat.jpg", "--skip-existing").stdout == "1 skipped: the mask exists already\n"
    assert predict(album, "--overwrite").exit_code == 1


def test_progress_is_a_bar_on_a_terminal(album, tmp_path):
    terminal, end = pytest.importorskip("pty").openpty()
    (album / "cut.jpg").unlink()
    process = subprocess.Popen([*command(), "predict", album, "-r"], stdout=subprocess.PIPE, stderr=end)
    os.close(end)
    shown = b""
    try:
        while chunk := os.read(terminal, 1000):
            shown += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(terminal)
    stdout, _ = process.communicate()
    assert b"3/3" in shown and b"photos/s" in shown and b"#" in shown and b"1 of 3 failed" in shown
    assert stdout.startswith(b"2 of 3 photos in ") and stdout.count(b"\n") == 1


def test_progress_in_a_log_is_a_line_now_and_then(album, predict, monkeypatch):
    monkeypatch.setattr(sys.modules["bitseg.cli.predict"], "SECONDS_BETWEEN_LINES", 0)
    lines = predict(album).stderr.splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == [f"{done} of 3 photos" for done in (1, 2, 3)]
    assert "photos/s" in lines[1] and lines[1].endswith(" s left")


def as_in_a_terminal():
    """Signals as a process gets them there: the background jobs of a shell, and what they start, ignore some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize(
    "sent, status, said", [("SIGINT", 130, "Interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")]
)
def test_interrupt_leaves_only_whole_results(tmp_path, sent, status, said):
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(500):
        os.link(CHELSEA, folder / f"{i:03}.jpg") if i == 0 else os.symlink(CHELSEA, folder / f"{i:03}.jpg")
    process = subprocess.Popen(
        [*command(), "predict", folder, "-o", output, "--overlay"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    patience = time.monotonic() + 60
    while not (output.exists() and len(os.listdir(output)) > 2) and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(getattr(signal, sent))
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (status, "", said)
    written = os.listdir(output)
    assert 2 < len(written) < 500
    for name in written:
        assert name.endswith(".overlay.png")
        read(output / name)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a second process compiles")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_is_left_of_a_first_run_that_is_ended(tmp_path, sent):
    process = subprocess.Popen(
        [*command(), "predict", CHELSEA, "-o", tmp_path / "mask.png"],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    assert "compiling" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(getattr(signal, sent))
    # Whoever compiles has the pipes open: until then they do not end.
    process.communicate(timeout=6)
    assert process.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[sent]
    assert not (tmp_path / "mask.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only there a second process compiles")
@pytest.mark.parametrize("sent, status, said", [("SIGINT", 130, "Interrupted\n"), ("SIGHUP", 129, "")])
def test_an_interrupt_of_all_processes_of_a_first_run_is_said_once(tmp_path, sent, status, said):
    process = subprocess.Popen(
        [*command(), "predict", CHELSEA, "-o", tmp_path / "mask.png"],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=as_in_a_terminal,
    )
    assert "compiling" in process.stderr.readline()
    time.sleep(2)
    os.killpg(process.pid, getattr(signal, sent))
    assert process.communicate(timeout=6)[1] == said and process.returncode == status


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize("sent, status, said", [("SIGINT", 130, "Interrupted\n"), ("SIGTERM", 143, "")])
@pytest.mark.parametrize("module", ["llvmlite.binding.some", "some"])
@pytest.mark.parametrize(
    "place",
    [
        "module.Reference()",
        "ctypes.CFUNCTYPE(None, ctypes.c_int)(module.notify)(0)",
        "reference = weakref.ref(module.Plain(), module.notify)",
    ],
)
def test_the_request_to_end_is_not_lost_in_a_destructor_or_a_callback(place, module, sent, status, said):
    code = f"""
import ctypes, signal, sys, time, types, weakref
from bitseg.cli.signals import end_when_asked

signal.signal(signal.SIGINT, signal.default_int_handler)
end_when_asked()
module = types.ModuleType("{module}")
module.end = lambda: signal.raise_signal(signal.{sent})
# In none of them would an exception go further.
exec("class Plain: pass\\nclass Reference:\\n def __del__(self):\\n  end()\\ndef notify(data):\\n end()", vars(module))
try:
    {place}
    time.sleep(10)
except KeyboardInterrupt:
    sys.stderr.write("Interrupted\\n")
    sys.exit(130)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=9)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", said)


def test_another_error_in_a_destructor_is_reported_as_ever():
    code = """
from bitseg.cli.signals import end_when_asked

end_when_asked()
class Reference:
    def __del__(self):
        raise ValueError("no end")
Reference()
print("done")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=9)
    assert (result.returncode, result.stdout) == (0, "done\n") and "ValueError: no end" in result.stderr


@pytest.mark.parametrize("jobs", [1, 3])
def test_where_no_thread_can_be_started_photos_are_segmented_all_the_same(tmp_path, jobs):
    code = f"""
import _thread, sys, threading

refused = []
def start_new_thread(*arguments, **keywords):
    refused.append(arguments)
    raise RuntimeError("can't start new thread")

_thread.start_new_thread = start_new_thread
for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name):
        setattr(threading, name, start_new_thread)
from bitseg.cli import main
try:
    main(["predict", "-j", "{jobs}", *{[str(CHELSEA), str(ASTRONAUT)]}, "-o", "out/"])
finally:
    print(len(refused))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert int(result.stdout.split()[-1]) > 0
    assert sorted(os.listdir(tmp_path / "out")) == ["astronaut.mask.png", "chelsea.mask.png"]


# What goes wrong


@pytest.mark.parametrize(
    "content, reason",
    [(None, "not found"), (b"not a photo", "not a picture"), (CHELSEA.read_bytes()[:20000], "truncated")],
    ids=["missing", "text", "truncated"],
)
def test_unreadable_photo(tmp_path, content, reason):
    photo = tmp_path / "photo.jpg"
    if content is not None:
        photo.write_bytes(content)
    before = os.listdir(tmp_path)
    assert_one_clear_line(bitseg("predict", photo, "-o", tmp_path / "mask.png"), photo, reason)
    assert os.listdir(tmp_path) == before


def assert_refused(result, *words):
    """As `commands.assert_one_clear_line`, for a command that ran in this process."""
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert str(word) in result.stderr


def test_folder_without_photos(tmp_path, predict):
    assert_refused(predict(tmp_path), tmp_path, "no photos")


def test_truncated_model(tmp_path, predict, model_bytes):
    model = tmp_path / "cut.h5"
    for length in (0, 100, len(model_bytes) // 2, len(model_bytes) - 1):
        model.write_bytes(model_bytes[:length])
        assert_refused(predict(CHELSEA, "-m", model, "-o", tmp_path / "mask.png"), model)
    assert os.listdir(tmp_path) == ["cut.h5"]


def test_foreign_hdf5_file(tmp_path, predict):
    model = tmp_path / "foreign.h5"
    with h5py.File(model, "w") as file:
        file["weights"] = np.zeros(10)
    assert_refused(predict(CHELSEA, "-m", model, "-o", tmp_path / "mask.png"), model)
    assert os.listdir(tmp_path) == ["foreign.h5"]


def test_missing_model_file(tmp_path, predict):
    model = tmp_path / "missing.h5"
    assert_refused(predict(CHELSEA, "-m", model, "-o", tmp_path / "mask.png"), model)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "option, value, suggestion", [("-m", "voc7w2a2", DEFAULT_MODEL), ("--classes", "person,catt", "'cat'")]
)
def test_mistyped_names_get_a_suggestion(tmp_path, option, value, suggestion):
    result = bitseg("predict", CHELSEA, option, value, "-o", tmp_path / "out" / "")
    assert_one_clear_line(result, value.split(",")[-1], suggestion)
    assert os.listdir(tmp_path) == []


def test_output_folder_that_does_not_exist(tmp_path, predict):
    assert_refused(predict(CHELSEA, "-o", tmp_path / "missing" / "mask.png"), tmp_path / "missing", "create it")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
@pytest.mark.parametrize("output", ["mask.png", "", "new/folder"])
def test_output_folder_that_is_write_protected(tmp_path, predict, output):
    tmp_path.chmod(0o555)
    assert_refused(predict(CHELSEA, "-o", tmp_path / output), tmp_path, "write-protected")
    assert os.listdir(tmp_path) == []


def test_full_disk_while_results_are_written(album, tmp_path):
    # No file may grow beyond a kilobyte: writing fails as it does on a full disk.
    words = ["sh", "-c", 'ulimit -f 1; "$@"', "sh", *command(), "predict", str(album / "cat.jpg"), "--overlay"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert_one_clear_line(result, album / "cat.overlay.png", "cannot be written")
    assert files(album) == ["cat.jpg", "cut.jpg", "space/cat.jpg", "text.png"]


def test_too_little_memory_is_one_line(tmp_path, predict, monkeypatch):
    def predict_without_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr("bitseg.segmenter.Segmenter.predict", predict_without_memory)
    assert_refused(predict(CHELSEA, "-o", tmp_path / "mask.png"), CHELSEA, "--size")


def test_mask_with_the_ending_of_a_lossy_format(tmp_path, predict):
    assert_refused(predict(CHELSEA, "-o", tmp_path / "mask.jpg"), "mask.jpg", ".png")
    assert os.listdir(tmp_path) == []


def test_photo_is_never_replaced(tmp_path, predict):
    photo = tmp_path / "photo.png"
    with Image.open(CHELSEA) as picture:
        picture.save(photo)
    before = photo.read_bytes()
    assert_refused(predict(photo, "-o", photo), "replace the photo")
    assert photo.read_bytes() == before


def test_names_that_a_shell_finds_hard(tmp_path, monkeypatch, predict):
    monkeypatch.chdir(tmp_path)
    for name in ("-dash.jpg", "two words.jpg", "ü 猫.jpg", "line\nbreak.jpg", "a'b\"c$d.jpg"):
        Path(name).write_bytes(CHELSEA.read_bytes())
        assert predict("-q", "--", name).exit_code == 0
        assert Path(name).with_suffix(".mask.png").exists()
        Path(name).write_bytes(b"")
        result = predict("--", name)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1


def test_names_that_the_encoding_of_the_terminal_lacks(tmp_path):
    photo = tmp_path / "猫.jpg"
    photo.write_bytes(CHELSEA.read_bytes())
    result = bitseg("predict", photo, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert result.returncode == 0 and result.stderr == "" and "\\u732b.mask.png" in result.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "0"],
        ["--size", "big"],
        ["--threads", "0"],
        ["--jobs", "0"],
        ["--colour", "red"],
        ["--as", "picture"],
        ["--as", "json", "--overlay"],
        ["--palette", "grey"],
        ["--opacity", "2", "--overlay"],
        ["--opacity", "nan", "--overlay"],
        ["--opacity", "0.5"],
        ["--classes", "cat,"],
        ["--classes", ""],
        ["--classes", "cat\ndog"],
        ["-o", ""],
        [""],
    ],
)
def test_wrong_usage_exits_with_2(predict, options):
    result = predict(CHELSEA, *options)
    assert result.exit_code == 2 and "Usage: bitseg predict" in result.stderr


@pytest.mark.parametrize(
    "value, names",
    [
        ("cat", ("cat",)),
        ("dog, person", ("dog", "person")),
        ('"light, red",car', ("light, red", "car")),
        ('car, "light, red"', ("car", "light, red")),
        ("sign 'stop'", ("sign 'stop'",)),
    ],
)
def test_names_of_classes_are_separated_by_commas_outside_quotes(value, names):
    assert ClassNames().convert(value, None, None) == names


def test_help_shows_every_option_with_its_default(predict):
    text = " ".join(predict("--help").stdout.split())
    options = main.commands["predict"].params[1:]
    assert all(name in text for option in options for name in option.opts)
    with_value = [option for option in options if not option.is_flag or option.secondary_opts]
    assert text.count("[default: ") == len(with_value)
