"""What bitseg raises when input cannot be used: one line that names the thing and the mend."""


class BitsegError(Exception):
    """Base of every error that a user can cause and mend."""


class ImageError(BitsegError):
    """A picture cannot be read, or a result cannot be written."""


class ModelFileError(BitsegError):
    """A model file is missing, damaged, or not a bitseg model."""


class DatasetError(BitsegError):
    """A labelled data set is incomplete or inconsistent."""
