"""What the training code raises when its input cannot be used."""

from bitseg.errors import BitsegError


class TrainingError(BitsegError):
    """A configuration, checkpoint or starting point cannot be used, or a run diverged."""


class DivergenceError(TrainingError):
    """The loss is no longer finite."""
