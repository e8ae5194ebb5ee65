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
    """An argument or an object does not fit; the message says which and what would."""


class MissingKeyError(SigmmaError, KeyError):
    """A named element, column or key does not exist."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes, with its line breaks escaped.
        return str(self.args[0])


class PixelSizeError(SetupError):
    """The transforms do not say how many µm one H&E pixel measures, or say something impossible."""


class NotTrainedError(SigmmaError, RuntimeError):
    """The model has to be trained first."""


class ExistsError(SigmmaError, FileExistsError):
    """Something of the user's would be overwritten."""


class EncoderError(SigmmaError, ValueError):
    """An image encoder cannot be built, loaded or used as described."""


class MissingPackageError(SigmmaError, ImportError):
    """A package of an optional extra is not installed."""


class RegistrationWarning(UserWarning):
    """Image and cells may not lie on each other."""


class CoverageWarning(UserWarning):
    """Some cells lie outside the image and so have no embedding."""


class CacheWarning(UserWarning):
    """A file of the cache cannot be used; what it held is computed again."""


class EncoderWarning(UserWarning):
    """An installed package cannot register its image encoders, which are left out."""


class ExpressionWarning(UserWarning):
    """Expression cannot be predicted later, or a gene's prediction comes without an estimate of its reliability."""


class SplitWarning(UserWarning):
    """The chosen split leaks, or is the best of poor choices."""


class TissueWarning(UserWarning):
    """A slide holds too little tissue to be centred and scaled by itself."""
