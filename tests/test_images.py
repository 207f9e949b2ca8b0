"""Reading, resizing and writing pictures."""

import os
import stat
import struct

import numpy as np
import pytest
from PIL import Image

from bitseg.errors import ImageError
from bitseg.images import check_output, read_image, resize, save_result, working_shape

ORIENTATION = 0x0112
IMAGE_WIDTH = 0x0100
UNSIGNED_SHORT, SIGNED_LONG = 3, 9
UPRIGHT = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)

# For each EXIF orientation, how a camera that was held that way stores an upright picture.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, -1),
}


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_undone(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), UPRIGHT)


def test_odd_exif_tags_do_no_harm(tmp_path):
    orientation_6 = struct.pack("<HHIHH", ORIENTATION, UNSIGNED_SHORT, 1, 6, 0)
    negative_width = struct.pack("<HHIi", IMAGE_WIDTH, SIGNED_LONG, 1, -8)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + negative_width + orientation_6 + bytes(4)
    Image.new("RGB", (8, 5)).save(tmp_path / "photo.jpg", exif=block)
    assert read_image(tmp_path / "photo.jpg").shape == (8, 5, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA", "I;16", "I"])
def test_every_pillow_mode_becomes_rgb(mode):
    image = read_image(Image.new(mode, (4, 3)))
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8 and image.flags.c_contiguous


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = noise(5, 4)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for source in (grey, tmp_path / "grey.png"):
        np.testing.assert_array_equal(read_image(source), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_are_scaled_down_not_clipped(tmp_path, ending):
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    assert read_image(tmp_path / f"deep.{ending}")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_transparent_pixels_are_white(tmp_path):
    palette_picture = Image.new("P", (2, 1))
    palette_picture.putpalette([10, 20, 30, 40, 50, 60])
    palette_picture.putpixel((1, 0), 1)
    palette_picture.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert read_image(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).tolist() == [[[255, 255, 255]]]
    assert read_image(Image.new("RGBA", (1, 1), (10, 20, 30, 255))).tolist() == [[[10, 20, 30]]]


def test_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0]


def test_array_is_copied():
    array = noise(3, 4)
    image = read_image(array)
    np.testing.assert_array_equal(image, array)
    assert not np.shares_memory(image, array)


@pytest.mark.parametrize(
    "source, mend",
    [
        (np.zeros((3, 4, 3)), r"\.astype\(np\.uint8\)"),
        (np.zeros((3, 4, 4), np.uint8), r"\(height, width, 3\)"),
        (np.zeros((1, 3, 4, 3), np.uint8), r"\(height, width, 3\)"),
        (np.zeros(3, np.uint8), r"\(height, width, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(height, width, 3\)"),
        (Image.new("F", (4, 3)), "floating-point"),
        (Image.fromarray(np.full((3, 4), 1 << 20, np.int32)), "32 bits"),
        (Image.new("RGB", (0, 0)), "no pixels"),
        (None, "pass a path"),
    ],
)
def test_unsuitable_source_is_refused_with_the_mend(source, mend):
    with pytest.raises(ImageError, match=mend):
        read_image(source)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_truncated_file_is_named(tmp_path, ending):
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(noise(64, 64)).save(path)
    whole = path.read_bytes()
    for length in (0, 3, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=f"cut.{ending}: ") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_what_is_not_a_picture_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo")
    for name, reason in (("text.jpg", "not a picture"), ("missing.jpg", "not found"), ("", "folder")):
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_decompression_bomb_is_refused(monkeypatch, tmp_path):
    Image.new("1", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"bomb\.png: too many pixels"):
        read_image(tmp_path / "bomb.png")


def test_resize_takes_height_before_width_and_keeps_flat_colors():
    flat = np.full((40, 60, 3), (1, 128, 255), np.uint8)
    resized = resize(flat, (7, 11))
    assert resized.shape == (7, 11, 3)
    assert (resized == (1, 128, 255)).all()


@pytest.mark.parametrize(
    "height, width, expected",
    [(3000, 4000, (384, 512)), (300, 451, (300, 451)), (512, 384, (512, 384)), (1, 4000, (1, 512))],
)
def test_working_shape_shrinks_in_proportion_and_never_enlarges(height, width, expected):
    assert working_shape(height, width, 512) == expected


def test_saved_file_has_ordinary_permissions_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "mask.png"
    path.write_text("old")
    (tmp_path / "ordinary").touch()
    save_result(Image.new("P", (4, 3)), path, "mask")
    assert Image.open(path).size == (4, 3)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    save_result(Image.new("P", (4, 3)), tmp_path / "link.png", "mask")
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "target.png").is_file()


def test_full_disk_is_reported_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="limits the size of files, which only Unix can")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ImageError, match=r"big\.png: cannot be written"):
            save_result(Image.fromarray(noise(64, 64)), tmp_path / "big.png", "overlay")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_output_is_checked_beforehand(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, kind, reason in (
        ("mask.jpg", "mask", "end in .png"),
        ("mask", "mask", "end in .png"),
        ("overlay.xyz", "overlay", "end in .png or .jpg"),
        ("no/such/mask.png", "mask", "does not exist; create it"),
        ("folder.png", "mask", "a folder or device"),
    ):
        with pytest.raises(ImageError, match=reason):
            check_output(tmp_path / name, kind)
    check_output(tmp_path / "overlay.JPG", "overlay")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_write_protection_is_respected(tmp_path):
    (tmp_path / "mask.png").touch(0o444)
    with pytest.raises(ImageError, match="write-protected"):
        check_output(tmp_path / "mask.png", "mask")
    tmp_path.chmod(0o555)
    with pytest.raises(ImageError, match="write-protected"):
        check_output(tmp_path / "other.png", "mask")
