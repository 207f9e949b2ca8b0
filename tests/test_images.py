"""Reading, resizing and writing pictures."""

import io
import os
import pickle
import stat
import struct
import zlib
from threading import Thread

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageChops, JpegImagePlugin

from bitseg.errors import ImageError
from bitseg.images import check_output, read_image, read_picture, resize, save_result, working_shape

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


def encoded(picture, kind, **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def rotated(picture, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](np.asarray(picture)))
    return encoded(Image.fromarray(stored), "JPEG", quality=95, exif=exif)


def plain_cmyk_jpeg(picture):
    """As Adobe's programs do not write it: 255 is full ink, and there is no mark of theirs."""
    content = encoded(ImageChops.invert(picture.convert("CMYK")), "JPEG", quality=95)
    start = content.index(b"\xff\xee")
    length = 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return content[:start] + content[start + length :]


def with_round_hole(picture):
    """An RGBA picture whose corners are transparent."""
    rows, columns = np.ogrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j]
    alpha = np.where(rows**2 + columns**2 < 1.5, 255, 0).astype(np.uint8)
    return Image.fromarray(np.dstack([np.asarray(picture), alpha]))


def deep_png(picture, mode):
    """A PNG with 16 bits a channel, which Pillow reads but hardly writes."""
    values = np.asarray(picture.convert(mode)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    color_type = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[mode]
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 16, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    checked = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


def deep_rgb_tiff(picture):
    """A TIFF with 16 bits of red, green and blue in one strip, which Pillow reads but does not write."""
    pixels = (np.asarray(picture).astype("<u2") * 257).tobytes()
    short, long = 3, 4
    entries = [(256, short, 1, picture.width), (257, short, 1, picture.height), (258, short, 3, 8), (259, short, 1, 1)]
    entries += [(262, short, 1, 2), (273, long, 1, 14), (277, short, 1, 3), (278, short, 1, picture.height)]
    entries += [(279, long, 1, len(pixels))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<IHHH", 14 + len(pixels), 16, 16, 16) + pixels + directory


def palette_with_transparency(picture):
    return encoded(picture.quantize(200), "PNG", transparency=0)


def moving_gif(picture):
    return encoded(picture, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size)])


IN_COLOR = {
    "JPEG": lambda picture: encoded(picture, "JPEG", quality=95),
    "progressive JPEG": lambda picture: encoded(picture, "JPEG", quality=95, progressive=True),
    "CMYK JPEG, inverted as Adobe's": lambda picture: encoded(picture.convert("CMYK"), "JPEG", quality=95),
    "CMYK JPEG, not inverted": plain_cmyk_jpeg,
    **{f"EXIF orientation {i}": lambda picture, i=i: rotated(picture, i) for i in STORED},
    "PNG": lambda picture: encoded(picture, "PNG"),
    "PNG with 16 bits": lambda picture: deep_png(picture, "RGB"),
    "PNG with a palette": lambda picture: encoded(picture.quantize(256), "PNG"),
    "PNG with a palette and a transparent colour": palette_with_transparency,
    "RGBA PNG": lambda picture: encoded(with_round_hole(picture), "PNG"),
    "RGBA PNG with 16 bits": lambda picture: deep_png(with_round_hole(picture), "RGBA"),
    "WebP": lambda picture: encoded(picture, "WEBP", quality=95),
    "WebP with transparency": lambda picture: encoded(with_round_hole(picture), "WEBP", quality=95),
    "moving GIF": moving_gif,
    "TIFF": lambda picture: encoded(picture, "TIFF"),
    "CMYK TIFF": lambda picture: encoded(picture.convert("CMYK"), "TIFF"),
    "TIFF with 16 bits": deep_rgb_tiff,
    "BMP": lambda picture: encoded(picture, "BMP"),
}
"""For each kind of file, how to write a colour photo so."""

WITHOUT_COLOR = {
    "JPEG": lambda picture: encoded(picture.convert("L"), "JPEG", quality=95),
    "PNG": lambda picture: encoded(picture.convert("L"), "PNG"),
    "PNG with 16 bits": lambda picture: deep_png(picture, "L"),
    "PNG with alpha": lambda picture: encoded(with_round_hole(picture).convert("LA"), "PNG"),
    "PNG with alpha and 16 bits": lambda picture: deep_png(with_round_hole(picture), "LA"),
    "TIFF with 16 bits": lambda picture: encoded(
        Image.fromarray(np.asarray(picture.convert("L")) * np.uint16(257)), "TIFF"
    ),
    "BMP": lambda picture: encoded(picture.convert("L"), "BMP"),
}
"""For each kind of file, how to write a photo in grey."""


def assert_seen_as(expected, segmentation):
    """The photo and its mask are about the same; corners may be transparent, and formats lose a little."""
    assert segmentation.image.shape == expected.image.shape
    assert np.median(np.abs(segmentation.image.astype(int) - expected.image)) < 6
    assert np.mean(segmentation.mask == expected.mask) > 0.8


@pytest.mark.parametrize("write", IN_COLOR.values(), ids=IN_COLOR)
def test_photo_is_seen_the_same_in_each_kind_of_file(segmenter, chelsea, tmp_path, write):
    (tmp_path / "photo").write_bytes(write(Image.fromarray(chelsea.image)))
    assert_seen_as(chelsea, segmenter.predict(tmp_path / "photo"))


@pytest.mark.parametrize("write", WITHOUT_COLOR.values(), ids=WITHOUT_COLOR)
def test_grey_photo_is_seen_the_same_in_each_kind_of_file(segmenter, chelsea, tmp_path, write):
    grey = segmenter.predict(np.asarray(Image.fromarray(chelsea.image).convert("L")))
    (tmp_path / "photo").write_bytes(write(Image.fromarray(chelsea.image)))
    assert_seen_as(grey, segmenter.predict(tmp_path / "photo"))


def test_black_and_white_picture_has_a_mask_of_its_size(segmenter, chelsea):
    bits = encoded(Image.fromarray(chelsea.image).convert("1"), "PNG")
    assert segmenter.predict(bits).mask.shape == chelsea.mask.shape


@pytest.mark.parametrize("width, height", [(1, 1), (4000, 1), (1, 4000), (31, 33), (127, 65), (451, 299), (3, 700)])
def test_mask_of_a_picture_of_any_size_has_that_size(segmenter, chelsea, width, height):
    picture = Image.fromarray(chelsea.image).resize((width, height))
    assert segmenter.predict(encoded(picture, "PNG")).mask.shape == (height, width)


def test_content_and_file_objects_are_read_as_the_file_itself(examples):
    path = examples / "chelsea.jpg"
    expected, content = read_image(path), path.read_bytes()
    written = io.BytesIO()
    written.write(content)
    with open(path, "rb") as file, os.fdopen(_pipe_with(content), "rb") as pipe:
        for source in (str(path), content, bytearray(content), memoryview(content), file, written, pipe):
            np.testing.assert_array_equal(read_image(source), expected)


def _pipe_with(content):
    """The end of a pipe from which `content` can be read."""
    reading, writing = os.pipe()
    Thread(target=lambda: open(writing, "wb").write(content)).start()
    return reading


def test_file_opened_as_text_is_refused_with_the_mend(examples):
    with open(examples / "chelsea.jpg") as file, pytest.raises(ImageError, match=r"chelsea\.jpg: .* mode 'rb'"):
        read_image(file)


def test_an_upload_that_is_read_asynchronously_is_refused_with_the_mend():
    class Upload:
        async def read(self, size=-1):
            return b""

    with pytest.raises(ImageError, match=r"asynchronous; pass what it gives, await file\.read\(\)"):
        read_image(Upload())


def test_an_address_is_no_path():
    with pytest.raises(ImageError, match="not found; download it first"):
        read_image("HTTPS://example.com/cat.jpg")


@pytest.mark.parametrize("source", [b"", io.BytesIO()])
def test_an_empty_file_is_said_so(source, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    for empty in (source, tmp_path / "a.jpg"):
        with pytest.raises(ImageError, match="is empty; copy or download it again"):
            read_image(empty)


def test_postscript_is_not_run(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", pytest.fail)
    with pytest.raises(ImageError, match="it is PostScript, which would have to be run"):
        read_image(tmp_path / "a.jpg")


class Foreign(Exception):
    """Of no library that reads pictures."""


def test_what_a_signal_raises_is_not_taken_for_a_damaged_picture(monkeypatch, examples):
    def interrupted(picture):
        raise Foreign("time limit")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", interrupted)
    with pytest.raises(Foreign):
        read_image(examples / "chelsea.jpg")


def test_what_a_stream_raises_is_its_error():
    class Stream(io.RawIOBase):
        def read(self, size=-1):
            if size:
                raise Foreign
            return b""

    class SeekableStream(Stream):
        def seekable(self):
            return True

        def seek(self, place, whence=0):
            return place if whence == 0 else 1000

    for stream in (Stream(), SeekableStream()):
        with pytest.raises(ImageError, match=r"file object: cannot be read \(Foreign\); copy or download it again"):
            read_image(stream)


def test_32_bits_that_hold_16_are_read_as_16(tmp_path):
    values = np.array([[0, 0x8000, 0xFFFF]], np.int32)
    Image.fromarray(values).save(tmp_path / "wide.tif")
    assert read_image(tmp_path / "wide.tif")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bits, photometric", [(12, 1), (16, 0), (16, 1)])
def test_a_tiff_says_how_many_bits_its_pixels_have_and_which_end_is_white(bits, photometric):
    """As Pillow cannot write it: little-endian, one strip of uncompressed values."""
    values = np.linspace(0, 2**bits - 1, 256).astype("<u2").reshape(16, 16)
    expected = (values >> (bits - 8)).astype(np.uint8)
    if bits == 12:  # whose values are packed
        low, high = values.reshape(-1, 2).T
        content = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], 1).astype(np.uint8).tobytes()
    else:
        content = values.tobytes()
    tags = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 16, 279: len(content)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"II*\0" + struct.pack("<I", 8 + len(content)) + content
    file += struct.pack("<H", len(tags)) + directory + struct.pack("<I", 0)
    grey = read_image(file)[:, :, 0]
    np.testing.assert_array_equal(grey, expected if photometric else 255 - expected)


@pytest.mark.parametrize("source", [b"no picture", io.BytesIO(b"no picture")])
def test_content_that_is_no_picture_is_said_so(source):
    with pytest.raises(ImageError, match=r"^(picture data|file object): not a picture"):
        read_image(source)


def test_closed_file_is_one_clear_line(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    with open(tmp_path / "photo.png", "rb") as file:
        pass
    with pytest.raises(ImageError, match=r"photo\.png: cannot be read .*closed file"):
        read_image(file)


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
    grey_picture = Image.fromarray(np.array([[1000, 1001]], np.uint16))
    grey_picture.save(tmp_path / "grey.png", transparency=1000)
    assert read_image(tmp_path / "grey.png").tolist() == [[[255, 255, 255], [3, 3, 3]]]
    assert read_image(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).tolist() == [[[255, 255, 255]]]
    assert read_image(Image.new("RGBA", (1, 1), (10, 20, 30, 255))).tolist() == [[[10, 20, 30]]]


def test_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0]


def test_nothing_is_shared_with_the_source():
    array = noise(3, 4)
    picture = Image.fromarray(array)
    picture.info["comment"] = "at home"
    for source in (array, picture):
        read = read_picture(source)
        np.testing.assert_array_equal(np.asarray(read), array)
        read.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(picture), array)
    assert picture.info == {"comment": "at home"} and tuple(array[0, 0]) != (1, 2, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_is_made_of_a_photo_says_nothing_of_place_and_time(tmp_path, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    photo = encoded(Image.fromarray(noise(8, 5)), kind, exif=exif, comment=b"at home")
    read = read_picture(photo)
    assert read.info == {} and read.mode == "RGB"
    for ending in ("png", "jpg", "webp"):
        save_result(read.copy(), tmp_path / f"a.{ending}", "overlay")
        content = (tmp_path / f"a.{ending}").read_bytes()
        assert not any(text in content for text in (b"a camera", b"at home"))


@pytest.mark.parametrize(
    "kind, mode", [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGBA"), ("TIFF", "P")]
)
def test_what_is_made_of_a_photo_has_its_colour_profile(tmp_path, kind, mode):
    read = read_picture(encoded(Image.fromarray(noise(8, 5)).convert(mode), kind, icc_profile=b"wide colours"))
    assert read.info == {"icc_profile": b"wide colours"}
    for ending in ("png", "jpg", "webp"):
        save_result(read.copy(), tmp_path / f"a.{ending}", "overlay")
        with Image.open(tmp_path / f"a.{ending}") as saved:
            assert saved.info["icc_profile"] == b"wide colours"


@pytest.mark.parametrize("profile", ["text", 7, b"x" * 2**21])
def test_what_is_no_colour_profile_is_left_out(profile):
    picture = Image.new("RGB", (8, 5))
    picture.info["icc_profile"] = profile
    assert read_picture(picture).info == {}


@pytest.mark.parametrize("kind, mode", [("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "I;16")])
def test_a_colour_profile_of_other_colours_is_left_out(kind, mode):
    assert read_picture(encoded(Image.new(mode, (8, 5)), kind, icc_profile=b"ink")).info == {}


def test_the_file_of_a_photo_may_go_once_it_is_read(tmp_path):
    for ending in ("jpg", "png", "webp", "tif", "bmp"):
        path = tmp_path / f"photo.{ending}"
        Image.fromarray(noise(9, 7)).save(path)
        read = read_picture(path)
        path.unlink()
        assert read.resize((3, 2)).size == (3, 2) and pickle.loads(pickle.dumps(read)).tobytes() == read.tobytes()


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


def test_picture_that_its_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ImageError, match=r"wide\.webp: WEBP cannot hold 16384x1 pixels .*save it as \.png"):
        save_result(Image.new("RGB", (16384, 1)), tmp_path / "wide.webp", "overlay")
    assert os.listdir(tmp_path) == []


def test_output_is_checked_beforehand(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, kind, reason in (
        ("mask.jpg", "mask", "end in .png"),
        ("mask", "mask", "end in .png"),
        ("overlay.xyz", "overlay", "end in .png or .jpg"),
        ("cutout.jpg", "cutout", "end in .png or .webp"),
        ("mask.png", "masks", "did you mean 'mask'"),
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
