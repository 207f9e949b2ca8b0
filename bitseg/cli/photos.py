"""Which photos a command line names, and which file the result of each becomes."""

import glob
import os
import stat
from pathlib import Path
from typing import NamedTuple

from ..errors import BitsegError, ImageError
from ..images import OUTPUT_FORMATS, PHOTO_ENDINGS, check_output

STANDARD_STREAM = "-"
"""Stands for standard input and standard output."""


class Photo(NamedTuple):
    """A photo that a command line names.

    Attributes
    ----------
    path : Path or None
        Its file; None: standard input.
    name : Path
        Its place below the folder it was found in.
    """

    path: Path | None
    name: Path

    def __str__(self):
        return "standard input" if self.path is None else str(self.path)


class Task(NamedTuple):
    """A photo and the file that its result becomes, None for standard output."""

    photo: Photo
    target: Path | None


def find_photos(inputs, recursive, on_error):
    """Find the photos that a command line names, each once.

    Results of earlier runs are no photos: in folders and patterns never, if they are named as bitseg names them
    (``photo.mask.png``), and in any format (``photo.overlay.jpg``) not where a shell put them beside their own photo
    (``*.jpg``).

    Parameters
    ----------
    inputs : sequence of str
        Files, folders, patterns such as ``*.jpg``, and ``-`` for standard input. Whether a file is there, and a photo,
        shows when it is read.
    recursive : bool
        Take the photos in the folders of a folder, too.
    on_error : callable
        Called with the `BitsegError` of each folder and pattern without a photo, and of each unreadable folder.

    Returns
    -------
    list of Photo
        In the order of `inputs`, those of a folder by name.
    """
    photos = {}
    for text in inputs:
        for photo in _expand(text, recursive, on_error):
            photos.setdefault(None if photo.path is None else os.path.abspath(photo.path), photo)
    names = {os.path.splitext(path)[0] for path in photos if path is not None}
    return [photo for path, photo in photos.items() if path is None or _name_of_photo(path) not in names]


def plan(photos, kind, output, on_error):
    """Say which file the result of each photo becomes, and find out which can be written.

    Parameters
    ----------
    photos : list of Photo
    kind : str
        A key of `images.OUTPUT_FORMATS`.
    output : str or None
        A file; ``-`` for standard output; or a folder, which is one that exists or a name without an ending or with a
        slash at its end. None: beside each photo, standard output for standard input.
    on_error : callable
        Called with the `BitsegError` of each result that cannot be written where others can.

    Returns
    -------
    list of Task
        Of those that can.

    Raises
    ------
    BitsegError
        Two results would become one file, one would replace a photo, or none can be written there.
    """
    if output is None or _is_folder(output):
        ending = next(iter(OUTPUT_FORMATS[kind]))
        tasks = [Task(photo, _target(photo, f".{kind}{ending}", output)) for photo in photos]
    elif len(photos) > 1:
        mend = "name a folder with -o" if output == STANDARD_STREAM else "end its name in / to make it a folder"
        raise BitsegError(f"{output}: one output for {len(photos)} photos; {mend}")
    else:
        tasks = [Task(photo, None if output == STANDARD_STREAM else Path(output)) for photo in photos]
    _check_distinct(tasks)
    _check_photos_stay(tasks)
    possible, errors = [], []
    for task in tasks:
        target = task.target
        try:
            # Beside a photo whose folder is missing: reading the photo will say so.
            if target is not None and (output is not None or os.path.isdir(target.parent)):
                _check_target(target, kind, may_create_folder=output is not None and _is_folder(output))
            possible.append(task)
        except BitsegError as error:
            errors.append(error)
    if errors and not possible:
        raise errors[0]
    for reason in errors:
        on_error(reason)
    return possible


def _expand(text, recursive, on_error):
    """Photos that one argument names."""
    if text == STANDARD_STREAM:
        return [Photo(None, Path("stdin"))]
    if os.path.isdir(text):
        return _photos_in(text, recursive, on_error)
    if not os.path.lexists(text) and glob.has_magic(text):
        photos = []
        for path in sorted(glob.glob(text, recursive=True)):
            if os.path.isdir(path):
                photos += _photos_in(path, recursive, on_error)
            elif _is_photo(path) and not _is_result(path):
                photos.append(Photo(Path(path), Path(Path(path).name)))
        if not photos:
            on_error(ImageError(f"{text}: matches no photo; check the pattern"))
        return photos
    return [Photo(Path(text), Path(Path(text).name))]


def _photos_in(folder, recursive, on_error):
    found, unreadable, has_folders = [], [], False
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        has_folders = has_folders or bool(folders)
        found += [path for name in sorted(files) if _is_photo(path := Path(parent, name))]
        if not recursive:
            break
    photos = [Photo(path, path.relative_to(folder)) for path in found if not _is_result(path)]
    for error in unreadable:
        on_error(ImageError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions"))
    if not photos and not unreadable:
        mend = "give one with .jpg files"
        if found:
            mend = "those named like a result (photo.mask.png) are none; name them one by one if they are"
        if has_folders and not recursive:
            mend = "--recursive looks into its folders"
        on_error(ImageError(f"{folder}: no photos in this folder; {mend}"))
    return photos


def _is_photo(path):
    """Whether a file in a folder is a photo, or the result of one; of a pipe nobody knows whether anything comes."""
    if Path(path).suffix.lower() not in PHOTO_ENDINGS or os.path.basename(path).startswith("."):
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # reading it will say why not


def _is_result(path):
    """Whether a file has the name that a result gets where none is given."""
    _, endings, ending = _parts_of_result(path)
    return ending == next(iter(endings), None)


def _name_of_photo(path):
    """Path of the photo that a result is named after, without its ending; None if this is no result's name."""
    name, endings, ending = _parts_of_result(path)
    return name if ending in endings else None


def _parts_of_result(path):
    """Of the path of a result: that of its photo without ending, the endings that its kind can have, and its own."""
    stem, ending = os.path.splitext(path)
    name, kind = os.path.splitext(stem)
    return name, OUTPUT_FORMATS.get(kind[1:], ()), ending.lower()


def _is_folder(output):
    if output == STANDARD_STREAM:
        return False
    return os.path.isdir(output) or output.endswith(("/", os.sep)) or not Path(output).suffix


def _target(photo, ending, output):
    name = photo.name.with_name(photo.name.stem + ending)
    if output is not None:
        return Path(output, name)
    return None if photo.path is None else photo.path.with_name(name.name)


def _check_distinct(tasks):
    photos = {}
    for photo, target in tasks:
        if target is None:
            continue
        other = photos.setdefault(os.path.normcase(os.path.abspath(target)), photo)
        if other is not photo:
            raise BitsegError(f"{other} and {photo} would both become {target}; give each a folder of its own with -o")


def _check_photos_stay(tasks):
    identities = {identity: photo for photo, _ in tasks if photo.path and (identity := _identity(photo.path))}
    for _, target in tasks:
        photo = target and identities.get(_identity(target))
        if photo:
            raise BitsegError(f"{target}: would replace the photo {photo}; choose another name with -o")


def _identity(path):
    """What is the same for all names of one file; None if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_target(target, kind, may_create_folder):
    folder = target.parent
    if may_create_folder:
        while not os.path.lexists(folder):
            folder = folder.parent
        if not os.path.isdir(folder):
            raise ImageError(f"{target}: {folder} is not a folder; choose another place with -o")
        if not os.access(folder, os.W_OK):
            raise ImageError(f"{target}: {folder} is write-protected; choose another place or change its permissions")
    if folder == target.parent:
        check_output(target, kind)
