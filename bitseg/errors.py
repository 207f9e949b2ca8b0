"""What bitseg raises when input cannot be used: one line that names the thing and the mend."""


class BitsegError(Exception):
    """Base of every error that a user can cause and mend."""


class ImageError(BitsegError):
    """A picture cannot be read, or a result cannot be written."""


class ModelFileError(BitsegError):
    """A model file is missing, damaged, or not a bitseg model."""


class DatasetError(BitsegError):
    """A labelled data set is incomplete or inconsistent."""


def unknown(kind, name, known):
    """One line about a name that there is not: the nearest of `known`, if one is near, and all of them."""
    from difflib import get_close_matches

    by_lower_case = {word.lower(): word for word in known}
    near = get_close_matches(str(name).lower(), by_lower_case, 1)
    hint = f"did you mean '{by_lower_case[near[0]]}'? " if near else ""
    return f"unknown {kind} '{name}': {hint}choose one of {', '.join(known)}"
