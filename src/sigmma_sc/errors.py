"""Errors that sigmma-sc raises on purpose, and its warnings. Each message names the offending value and the fix.

Examples
--------
>>> try:
...     sg.Config(edges="all")
... except sg.errors.SetupError as error:
...     print(error)
edges='all' is not one of 'sampled', 'full', 'none'.
"""


class SigmmaError(Exception):
    """Base class of every error sigmma-sc raises on purpose."""


class SetupError(SigmmaError, ValueError):
    """An argument or an object is not valid; the message names it and the fix."""


class MissingKeyError(SigmmaError, KeyError):
    """A named element, column or key does not exist."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes, with its line breaks escaped.
        return str(self.args[0])


class PixelSizeError(SetupError):
    """The transforms do not determine the µm per H&E pixel, or give an implausible value."""


class NotTrainedError(SigmmaError, RuntimeError):
    """The model must be trained first."""


class ExistsError(SigmmaError, FileExistsError):
    """A file or element of the user would be overwritten."""


class WriteError(SigmmaError, OSError):
    """A file or folder cannot be written: no space is left, or writing is not allowed."""


class EncoderError(SigmmaError, ValueError):
    """An image encoder cannot be built, loaded or used as described."""


class MissingPackageError(SigmmaError, ImportError):
    """A package of an optional extra is not installed."""


class RegistrationWarning(UserWarning):
    """Image and cells may not be registered."""


class CoverageWarning(UserWarning):
    """Some cells are outside the image and so have no embedding."""


class CoreWarning(UserWarning):
    """Some cells are in no core of a tissue microarray."""


class CacheWarning(UserWarning):
    """A file of the cache cannot be used; its features are computed again."""


class EncoderWarning(UserWarning):
    """An installed package cannot register its image encoders, which are left out."""


class ExpressionWarning(UserWarning):
    """Expression cannot be predicted later, or a gene's prediction comes without an estimate of its reliability."""


class UnlikeWarning(UserWarning):
    """Some tiles are unlike the tissue that a model was trained on, or it cannot be told which."""


class MemoryWarning(UserWarning):
    """The memory of a device ran out; fewer crops pass the image encoder at once from now on."""


class PanelWarning(UserWarning):
    """A slide lacks many of the genes that the node features are made of."""


class SplitWarning(UserWarning):
    """The chosen split leaks, or leaves few tiles or slides to evaluate on."""


class TissueWarning(UserWarning):
    """A slide holds too little tissue for a mean and standard deviation of its features."""


class ImageWarning(UserWarning):
    """An image may not be an H&E, or a part of it shows nothing."""


class PixelSizeWarning(UserWarning):
    """The µm per H&E pixel may be wrong."""
