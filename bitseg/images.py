"""Pictures in and out: anything Pillow reads as upright 8-bit RGB, one way to resize, results as files."""

import inspect
import io
import json
import os
import re
import stat
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from .errors import ImageError, unknown
from .files import check_writable, write_all, write_safely

ImageSource: TypeAlias = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray
"""What `read_image` takes."""

OUTPUT_FORMATS = {
    # No JPEG: it would change class ids.
    "mask": {".png": "PNG"},
    "color": {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"},
    "overlay": {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"},
    "cutout": {".png": "PNG", ".webp": "WEBP"},
    "json": {".json": "JSON"},
    "scores": {".npz": "NPZ"},
}
"""What can be saved, and the format for every ending it can be saved with: one of Pillow's, ``JSON`` or ``NPZ``."""

PHOTO_ENDINGS = frozenset(".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
"""What makes a file in a folder a photo; one that is named itself may end in anything."""

_ENCODING = {"quality": 95, "compress_level": 3}
"""For Pillow: ``quality`` of JPEG and WebP; of PNG, an overlay of a voc7 photo takes 21 ms and 345 kB at this level,
31 ms and 362 kB at 4, 49 ms and 354 kB at the usual 6 (means of 40 photos)."""

_ENCODING_OF_CLASSES = {**_ENCODING, "compress_type": zlib.Z_RLE}
"""Of pictures with few colours in large areas: a mask of 12 megapixels has 17 kB instead of 45, in the same 17 ms."""

_REDUCING_GAP = 3.0
"""A picture of more than so many times the size wanted is first averaged over whole pixels: 8 ms instead of 27 for 12
megapixels, and values that differ by 0.2 of 255 in the mean."""

_MODES_OF_RGB = "RGB", "RGBA", "RGBX", "P", "PA"
"""Whose colour profile is that of the same picture in RGB, too."""

_LARGEST_PROFILE = 1 << 20
"""Bytes; Pillow reads no larger one from a PNG."""

_MODULES_OF_DECODERS = sys.stdlib_module_names | {"PIL"}
"""Where the exceptions are defined that come from a picture or its file."""

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation: how to turn the stored picture."""


def read_image(source: ImageSource) -> np.ndarray:
    """Read a picture as `read_picture` does.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        Red, green, blue; contiguous, and not shared with `source`.

    Examples
    --------
    >>> read_image("examples/chelsea.jpg").shape
    (300, 451, 3)
    """
    return np.array(read_picture(source))


def read_picture(source: ImageSource) -> Image.Image:
    """Read a picture as it is meant to be seen: upright, 8 bits, RGB.

    EXIF orientation is applied. Transparent pixels lie on white, as on a page. 16-bit values keep their upper 8 bits,
    grey and palette pictures become RGB, and of several frames the first counts.

    Parameters
    ----------
    source : path, bytes, binary file, PIL.Image.Image, or ndarray of uint8, (height, width, 3) or (height, width)
        A picture file, its content, or a file object that gives it; or a Pillow image of any mode but those of
        floating-point numbers; or red, green and blue (in this order), or grey, from 0 to 255.

    Returns
    -------
    PIL.Image.Image
        Mode RGB; not shared with `source`. Its ``info`` has the colour profile, if there is one, and nothing else.

    Raises
    ------
    ImageError
        The file is missing, damaged, too large or not a picture; or `source` is of another type, dtype or shape.

    Examples
    --------
    >>> read_picture("examples/chelsea.jpg").size
    (451, 300)
    """
    picture, profile = _rgb(source)
    picture = picture.copy() if picture is source else picture
    # What is made of it looks as it does, but says nothing of place and time.
    picture.info = {"icc_profile": profile} if profile else {}
    return picture


def held(source: ImageSource) -> ImageSource:
    """A picture as it is now, however its source changes.

    Parameters
    ----------
    source : see `read_picture`

    Returns
    -------
    path, bytes, io.BytesIO, or PIL.Image.Image of mode RGB
        A path as it is: its file is read when its turn comes.

    Raises
    ------
    ImageError
        An array, a Pillow image or a file object is not usable.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        return source
    if isinstance(source, (np.ndarray, Image.Image)):
        return read_picture(source)
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    return _in_memory(source, *_name_and_seekable(source)) if hasattr(source, "read") else source


def resize(image, shape):
    """Bring a picture to another size, averaging over the pixels that vanish.

    Parameters
    ----------
    image : PIL.Image.Image of mode RGB, or ndarray of uint8, shape (height, width, 3)
        Picture.
    shape : (int, int)
        New height and width in pixels.

    Returns
    -------
    ndarray of uint8, shape (*shape, 3)
        Pillow's bilinear filter, of a much larger picture after a box filter; their arithmetic is fixed-point, so every
        CPU gets the same bytes.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return np.array(picture.resize(shape[::-1], Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP))


def working_shape(height, width, long_side):
    """Size at which a picture is segmented: never enlarged, its proportions kept.

    Parameters
    ----------
    height, width : int
        Size of the picture in pixels.
    long_side : int or math.inf
        Longest side allowed, in pixels.

    Returns
    -------
    (int, int)
        Height and width, each at least 1 pixel.
    """
    longest = max(height, width)
    if longest <= long_side:
        return height, width
    return tuple(max(1, round(side * long_side / longest)) for side in (height, width))


def check_output(target: str | os.PathLike | BinaryIO, kind: str):
    """Find out, before any work is done, whether a result can be saved.

    Parameters
    ----------
    target : path or binary file
        File to be written; of a file object only the kind is checked.
    kind : str
        A key of `OUTPUT_FORMATS`.

    Raises
    ------
    ImageError
        There is no such kind, a file object is for text, the ending does not suit, or the folder or an existing file of
        this name does not let itself be written.
    """
    endings = _formats(kind)
    if isinstance(target, io.TextIOBase):
        raise ImageError(f"{getattr(target, 'name', 'file object')}: opened as text; open it with mode 'wb'")
    if hasattr(target, "write"):
        return
    path = Path(target)
    if path.suffix.lower() not in endings:
        raise ImageError(f"{path}: {kind} files end in {' or '.join(endings)}; change the name")
    check_writable(path, ImageError)


def save_result(result, target: str | os.PathLike | BinaryIO, kind: str):
    """Save a result, whole or not at all, in the format that its file's ending stands for.

    Parameters
    ----------
    result : PIL.Image.Image, or dict
        A picture; what goes into a ``.json`` file; or the arrays of an ``.npz`` file by name.
    target : path or binary file
        File to be written, in which `check_output` finds no fault; an existing one is replaced. To a file object goes
        the first format of the kind.
    kind : str
        A key of `OUTPUT_FORMATS`.

    Raises
    ------
    ImageError
        The format has no room for so large a picture, or the file cannot be written, for example for a full disk.
    """
    formats = OUTPUT_FORMATS[kind]
    if hasattr(target, "write"):
        content = _encode(result, next(iter(formats.values())), kind)
        try:
            write_all(target, content)
        except OSError as error:
            name = getattr(target, "name", "file object")
            raise ImageError(f"{name}: cannot be written ({error.strerror or error})") from error
        return
    content = _encode(result, formats[Path(target).suffix.lower()], target)
    with write_safely(target, ImageError) as file:
        file.write(content)


def _formats(kind):
    if kind not in OUTPUT_FORMATS:
        raise ImageError(unknown("kind of result", kind, OUTPUT_FORMATS))
    return OUTPUT_FORMATS[kind]


def _encode(result: Any, name, target):
    """Content of a file in the format of this name."""
    if name == "JSON":
        return f"{json.dumps(result)}\n".encode()
    content = io.BytesIO()
    if name == "NPZ":
        np.savez(content, **result)
    else:
        try:
            encoding = _ENCODING_OF_CLASSES if result.mode == "P" else _ENCODING
            result.save(content, name, icc_profile=result.info.get("icc_profile"), **encoding)
        except (OSError, ValueError) as error:
            size = "x".join(map(str, result.size))
            raise ImageError(f"{target}: {name} cannot hold {size} pixels ({error}); save it as .png") from error
    return content.getvalue()


def _rgb(source: ImageSource) -> tuple[Image.Image, bytes | None]:
    """`read_picture`, a Pillow image in RGB as it is; and its colour profile."""
    if isinstance(source, np.ndarray):
        return _rgb_from_array(source), None
    if isinstance(source, Image.Image):
        with _pillow_errors("PIL image"):
            return _rgb_from_pillow(source)
    if isinstance(source, (str, os.PathLike)):
        return _rgb_from_file(source, source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        # Of a memoryview with gaps BytesIO makes nothing.
        return _rgb_from_file(io.BytesIO(bytes(source)), "picture data")
    if hasattr(source, "read"):
        return _rgb_from_stream(source)
    raise ImageError(
        f"not a picture: {type(source).__name__}; pass a path, bytes, a binary file, a PIL image or a uint8 array"
    )


def _rgb_from_array(array):
    if array.dtype != np.uint8:
        raise ImageError(f"{array.dtype} array: scale it to 0 to 255 and convert it with .astype(np.uint8)")
    is_grey = array.ndim == 2
    if (not is_grey and array.shape[2:] != (3,)) or array.size == 0:
        raise ImageError(f"array of shape {array.shape}: pass (height, width, 3) RGB or (height, width) grey")
    picture = Image.fromarray(array)
    return picture.convert("RGB") if is_grey else picture


def _rgb_from_stream(stream):
    name, is_seekable = _name_and_seekable(stream)
    file = stream if is_seekable else _in_memory(stream, name, is_seekable)
    with _stream_errors(name):
        # Pillow rewinds it, so a BytesIO that was just written to is read from its start.
        return _rgb_from_file(file, name)


def _in_memory(stream, name, is_seekable):
    """All that a binary file holds, with its name; from its start, where it can go back there."""
    with _stream_errors(name):
        if is_seekable:
            stream.seek(0)
        content = io.BytesIO(stream.read())
    content.name = name
    return content


def _name_and_seekable(stream):
    """What a file object is called in messages, and whether it can go back; one for text is refused."""
    name = getattr(stream, "name", "file object")
    with _stream_errors(name):
        nothing = stream.read(0)
        if inspect.isawaitable(nothing):
            if inspect.iscoroutine(nothing):
                nothing.close()
            raise ImageError(f"{name}: its read() is asynchronous; pass what it gives, await file.read()")
        is_binary = isinstance(nothing, bytes)
        is_seekable = hasattr(stream, "seekable") and stream.seekable()
    if not is_binary:
        raise ImageError(f"{name}: opened as text; open it with mode 'rb'")
    return name, is_seekable


@contextmanager
def _stream_errors(name):
    """Turn whatever reading a file object raises into one line: that may be anybody's exception."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: cannot be read ({_reason(error)}); copy or download it again") from error


def _reason(error):
    return str(error) or type(error).__name__


def _rgb_from_file(file, name):
    with _pillow_errors(name), _open(file, name) as picture:
        if picture.format == "EPS":
            raise ValueError("it is PostScript, which would have to be run")
        return _rgb_from_pillow(picture)


def _open(file, name):
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if _is_empty(file):
            raise ImageError(f"{name}: is empty; copy or download it again") from None
        raise


def _is_empty(file):
    if hasattr(file, "seek"):
        return file.seek(0, os.SEEK_END) == 0
    status = os.stat(file)
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _rgb_from_pillow(picture):
    """The picture in RGB, and its colour profile, if that is one of such colours."""
    # Not ImageOps.exif_transpose: it also writes the EXIF block anew, which fails on photos with odd tags. Loading
    # comes first because it turns a TIFF upright.
    picture.load()
    turn = _TO_UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation))
    if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, in which 0 is full ink.
        picture = ImageChops.invert(picture)
    if turn is not None:
        picture = picture.transpose(turn)
    if 0 in picture.size:
        raise ValueError("it has no pixels")
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if picture.mode.startswith("I"):
        return _rgb_from_16_bits(picture), None
    profile = picture.info.get("icc_profile") if picture.mode in _MODES_OF_RGB else None
    if not isinstance(profile, bytes) or len(profile) > _LARGEST_PROFILE:
        profile = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB"), profile


def _rgb_from_16_bits(picture):
    # Pillow's own conversion to RGB clips at 255.
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its pixels have 32 bits")
    tags = getattr(picture, "tag_v2", {})
    bits = min(tags.get(ExifTags.Base.BitsPerSample, (16,))[0], 16)
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        grey = ~grey  # 0 is white
    transparent = picture.info.get("transparency")
    return _rgb_from_array(grey if transparent is None else np.where(values == transparent, np.uint8(255), grey))


@contextmanager
def _pillow_errors(name):
    """Turn whatever Pillow raises on a picture into one line that begins with `name`."""
    try:
        yield
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        is_address = re.match(r"(https?|ftp):/", str(name), re.IGNORECASE)
        raise ImageError(f"{name}: not found; {'download it first' if is_address else 'check the path'}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder; give a picture") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read; change its permissions") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture that Pillow can read; convert it to JPEG or PNG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageError(f"{name}: too many pixels to open; make it smaller") from error
    except Exception as error:
        # Its decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more on damaged files.
        if type(error).__module__.partition(".")[0] not in _MODULES_OF_DECODERS:
            raise  # by a signal's handler, which may come at any time
        mend = "copy it again or save it as JPEG or PNG"
        raise ImageError(f"{name}: cannot be decoded ({_reason(error)}); {mend}") from error
