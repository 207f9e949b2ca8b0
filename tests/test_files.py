"""Files that appear whole or not at all."""

import os

import pytest

from bitseg.errors import ImageError, ModelFileError
from bitseg.files import check_writable, write_safely


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_interrupted_writing_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "result"
    path.write_text("old")
    with pytest.raises(error), write_safely(path, ImageError) as file:
        file.write(b"new")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("error_class", [ImageError, ModelFileError])
def test_what_cannot_be_written_is_said_in_the_terms_of_the_caller(tmp_path, error_class):
    (tmp_path / "folder").mkdir()
    for name, mend in (("missing/result", "create it"), ("folder", "choose another")):
        with pytest.raises(error_class, match=f"^{tmp_path / name}: .*{mend}"):
            check_writable(tmp_path / name, error_class)
        with pytest.raises(error_class), write_safely(tmp_path / name, error_class):
            pytest.fail("opened for writing")
    assert sorted(os.listdir(tmp_path)) == ["folder"]


@pytest.mark.parametrize("name", ["a\0b", "a\udfffb"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(ImageError, match="no file can have this name"), write_safely(tmp_path / name, ImageError):
        pytest.fail("opened for writing")


def test_a_name_that_is_too_long_is_refused_before_any_work(tmp_path):
    with pytest.raises(ImageError, match="the name is too long; choose a shorter one"):
        check_writable(tmp_path / ("a" * 300), ImageError)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")
    path.chmod(0o600)
    with write_safely(path, ImageError) as file:
        file.write(b"new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
