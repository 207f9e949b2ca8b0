"""Which photos a command line names, and which file each result becomes."""

import os
from pathlib import Path

import pytest

from bitseg.cli.photos import Photo, Task, find_photos, plan
from bitseg.errors import BitsegError

UNDECODABLE = b"\xff.jpg"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def fail(error):
    raise error


def found(*inputs, recursive=False):
    return [str(photo.path) for photo in find_photos(inputs, recursive, fail)]


def targets(*inputs, kind="mask", output=None, recursive=False):
    return [str(task.target) for task in plan(find_photos(inputs, recursive, fail), kind, output, fail)]


def path(*parts):
    return os.path.join(*parts)


def test_a_folder_gives_its_photos_by_name():
    put("in/b.JPG", "in/a.png", "in/c.webp", "in/notes.txt", "in/model.h5", "in/sub/d.jpg")
    assert found("in") == [path("in", name) for name in ("a.png", "b.JPG", "c.webp")]


def test_recursive_descends_but_not_into_hidden_folders():
    put("in/b/2.jpg", "in/b/1.jpg", "in/a/c/3.jpg", "in/.thumbnails/4.jpg", "in/5.jpg")
    assert [photo.replace(os.sep, "/") for photo in found("in", recursive=True)] == [
        "in/5.jpg",
        "in/a/c/3.jpg",
        "in/b/1.jpg",
        "in/b/2.jpg",
    ]


@pytest.mark.parametrize("name", [".hidden.jpg", "._photo.jpg", ".bitseg-0123456789abcdef"])
def test_hidden_files_of_a_folder_are_no_photos(name):
    put(f"in/{name}", "in/photo.jpg")
    assert found("in") == [path("in", "photo.jpg")]


@pytest.mark.parametrize("result", ["a.mask.png", "a.color.jpg", "a.overlay.webp", "a.cutout.png"])
def test_results_of_earlier_runs_are_not_taken_as_photos(result):
    put("a.png", result)
    assert found(".") == ["a.png"]
    assert found("*") == ["a.png"]
    assert found("a.png", result) == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_in_a_folder_are_no_photos():
    put("in/photo.jpg")
    os.mkfifo("in/pipe.jpg")
    assert found("in") == found("in/*.jpg") == [path("in", "photo.jpg")]


def test_a_folder_with_nothing_but_names_of_results_says_what_is_wrong():
    put("in/frame.color.png")
    with pytest.raises(BitsegError, match="named like a result"):
        found("in")


def test_a_photo_whose_name_only_looks_like_that_of_a_result_is_one():
    put("diver.jpg", "diver.mask.jpg", "diver.json.png")  # no kind of result ends so
    assert found(".") == ["diver.jpg", "diver.json.png", "diver.mask.jpg"]


def test_a_result_that_is_named_alone_is_a_photo():
    put("a.png", "a.mask.png")
    assert found("a.mask.png") == ["a.mask.png"]


def test_patterns_are_expanded_for_shells_that_do_not():
    put("in/b.jpg", "in/a.jpg", "in/c.png", "other/d.jpg", "a.txt")
    assert found("in/*.jpg") == [path("in", "a.jpg"), path("in", "b.jpg")]
    assert found("**/*.jpg") == [path("in", "a.jpg"), path("in", "b.jpg"), path("other", "d.jpg")]
    assert found("*") == [path("in", name) for name in ("a.jpg", "b.jpg", "c.png")] + [path("other", "d.jpg")]


def test_a_photo_whose_name_looks_like_a_pattern_is_itself():
    put("a[1].jpg", "a1.jpg")
    assert found("a[1].jpg") == ["a[1].jpg"]


def test_a_photo_that_is_named_twice_is_taken_once():
    put("in/a.jpg")
    assert found("in/a.jpg", "in", path("in", "..", "in", "a.jpg"), "in/*.jpg", os.path.abspath("in/a.jpg")) == [
        path("in", "a.jpg")
    ]


def test_standard_input_is_taken_once():
    assert find_photos(("-", "-"), False, fail) == [Photo(None, Path("stdin"))]


def test_a_file_that_is_not_there_is_left_to_fail_at_its_turn():
    assert found("missing.jpg") == ["missing.jpg"]


@pytest.mark.parametrize(
    "given, mend",
    [("empty", "no photos"), ("outer", "--recursive"), ("*.jpg", "matches no photo"), ("empty/*", "matches no photo")],
)
def test_what_holds_no_photo_is_reported_and_the_rest_found(given, mend):
    put("photo.png", "outer/inner/a.jpg")
    os.mkdir("empty")
    errors = []
    photos = find_photos((given, "photo.png"), False, errors.append)
    assert [photo.path for photo in photos] == [Path("photo.png")]
    assert [str(error).startswith(given) and mend in str(error) for error in errors] == [True]


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "fsencode"), reason="names are Unicode there")
def test_names_that_are_no_text_are_kept(folder):
    try:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), UNDECODABLE))).touch()
    except OSError:
        pytest.skip("this file system takes only names that are text")
    assert targets(".") == [os.fsdecode(b"\xff.mask.png")]


def test_results_lie_beside_their_photos():
    put("my.photo.jpg", "in/b.png", "no ending", "üñí 猫.jpg")
    assert targets("my.photo.jpg", "in", "no ending", "üñí 猫.jpg") == [
        "my.photo.mask.png",
        path("in", "b.mask.png"),
        "no ending.mask.png",
        "üñí 猫.mask.png",
    ]


@pytest.mark.parametrize(
    "kind, name",
    [("color", "a.color.png"), ("cutout", "a.cutout.png"), ("json", "a.json.json"), ("scores", "a.scores.npz")],
)
def test_results_of_different_kinds_have_different_names(kind, name):
    put("a.jpg")
    assert targets("a.jpg", kind=kind) == [name]


def test_the_tree_of_a_folder_is_kept_below_the_output_folder():
    put("in/x.jpg", "in/a/x.jpg", "in/a/b/x.jpg")
    assert targets("in", recursive=True, output="out") == [
        path("out", "x.mask.png"),
        path("out", "a", "x.mask.png"),
        path("out", "a", "b", "x.mask.png"),
    ]
    assert not os.path.exists("out")


@pytest.mark.parametrize("output", ["out", "out.d/", "there.png", "deep/er"])
def test_output_folders(output):
    put("in/x.jpg")
    os.mkdir("there.png")
    assert targets("in", output=output) == [path(output, "x.mask.png")]
    assert targets("in/x.jpg", output=output) == [path(output, "x.mask.png")]


def test_a_single_photo_becomes_the_file_that_is_named():
    put("x.jpg")
    assert targets("x.jpg", output="result.png") == ["result.png"]


def test_standard_streams():
    put("x.jpg")
    stdin = Photo(None, Path("stdin"))
    assert plan([stdin], "mask", None, fail) == [Task(stdin, None)]
    assert plan([stdin], "mask", "out/", fail) == [Task(stdin, Path("out/stdin.mask.png"))]
    assert targets("x.jpg", output="-") == ["None"]


@pytest.mark.parametrize("output", ["-", "out.png"])
def test_several_photos_do_not_become_one_file(output):
    put("a.jpg", "b.jpg")
    with pytest.raises(BitsegError, match=f"^{output}: one output for 2 photos; .*folder"):
        targets("a.jpg", "b.jpg", output=output)


@pytest.mark.parametrize(
    "photos, output", [(("a.jpg", "a.png"), None), (("in/a.jpg", "other/a.jpg"), "out"), (("in", "other"), "out/")]
)
def test_two_results_do_not_become_one_file(photos, output):
    put("a.jpg", "a.png", "in/a.jpg", "other/a.jpg")
    with pytest.raises(BitsegError, match=r"a\.jpg and .*a\.\w{3} would both become .*a\.mask\.png"):
        targets(*photos, output=output)


def test_a_photo_is_never_replaced():
    put("a.png", "in/a.mask.png", "in/b.jpg")
    os.link("a.png", "link.png")
    for output in ("a.png", "link.png", path("in", "..", "a.png")):
        with pytest.raises(BitsegError, match=r"would replace the photo a\.png"):
            targets("a.png", output=output)
    os.symlink("b.jpg", "in/b.mask.png")
    with pytest.raises(BitsegError, match=r"would replace the photo .*b\.jpg"):
        targets("in/b.jpg")


@pytest.mark.parametrize(
    "output, reason", [("x.jpg/out", "x.jpg is not a folder"), ("x.jpg/", "not a folder"), ("y.jpg", "end in .png")]
)
def test_an_output_that_cannot_be_written_is_reported_beforehand(output, reason):
    put("x.jpg")
    with pytest.raises(BitsegError, match=reason):
        targets("x.jpg", output=output)


def test_a_result_whose_name_a_folder_has_is_reported_beforehand():
    put("x.jpg", "y.jpg")
    os.mkdir("y.mask.png")
    with pytest.raises(BitsegError, match=r"y\.mask\.png: a folder"):
        targets("x.jpg", "y.jpg")


@pytest.mark.parametrize("output", [None, "out/"])
def test_a_result_that_cannot_be_written_leaves_the_others(output):
    long = f"in/{'x' * 247}.jpg"  # with .mask.png it is too long
    put("in/a.jpg", long, "out/other.png")
    errors = []
    tasks = plan(find_photos(["in"], False, fail), "mask", output, errors.append)
    assert [task.photo.path.name for task in tasks] == ["a.jpg"]
    assert len(errors) == 1 and "the name is too long" in str(errors[0])
    with pytest.raises(BitsegError, match="the name is too long"):
        plan(find_photos([long], False, fail), "mask", output, errors.append)
