"""Errors and warnings about a user's input. Each message names the offending value and the fix."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec


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


class ExpressionWarning(UserWarning):
    """Expression cannot be predicted later, or a gene's prediction comes without an estimate of its reliability."""


class SplitWarning(UserWarning):
    """The chosen split leaks, or is the best of poor choices."""


def require_key(key: object, available: Iterable | Mapping, what: str, fix: str = "") -> None:
    """Raise :class:`MissingKeyError` unless ``key`` is among ``available``.

    Parameters
    ----------
    key
        The name the user gave.
    available
        Names that exist.
    what
        What is being named, e.g. ``"image_key"``.
    fix
        A further sentence on how to mend it.
    """
    names = list(available)
    if key not in names:
        shown = ", ".join(repr(n) for n in names[:12]) + (" …" if len(names) > 12 else "") or "none"
        raise MissingKeyError(f"{what}={key!r} does not exist. Available: {shown}. {fix}".rstrip())


def require_choice(value: object, choices: Iterable, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is one of ``choices``."""
    options = list(choices)
    if value not in options:
        raise SetupError(f"{what}={value!r} is not one of {', '.join(repr(o) for o in options)}.")


def require_positive(value: float, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is a positive finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise SetupError(f"{what}={value!r} must be a positive number.")


def require_divides(stride: float, tile_size: float) -> None:
    """Raise :class:`SetupError` unless a whole number of strides, to a thousandth, makes a tile; both in µm."""
    require_positive(stride, "stride")
    steps = tile_size / stride
    if not 0.999 < steps / max(1, round(steps)) < 1.001:
        raise SetupError(f"stride={stride!r} µm must divide tile_size={tile_size} µm.")


def require_package(module: str, extra: str) -> None:
    """Raise :class:`MissingPackageError` unless ``module`` of the optional ``extra`` is installed."""
    if find_spec(module) is None:
        raise MissingPackageError(
            f'This needs the package {module!r}. Install it with pip install "sigmma-sc[{extra}]".'
        )
