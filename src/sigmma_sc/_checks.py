"""Checks of a user's input. Each message names the offending value and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from math import isfinite
from numbers import Integral, Real
from os import PathLike

from sigmma_sc.errors import MissingKeyError, MissingPackageError, SetupError

MOST_STEPS = 256
"""Most steps of a stride in a tile: half a micrometre of 128, which is a pixel."""


def require_key(key: object, available: Iterable | Mapping, what: str, fix: str = "") -> None:
    """Raise :class:`MissingKeyError` unless ``key`` is available; ``what`` names the argument, ``fix`` adds to it."""
    names = list(available)
    if key not in names:
        shown = ", ".join(map(repr, names[:12])) + (" …" if len(names) > 12 else "") or "none"
        raise MissingKeyError(f"{what}={key!r} does not exist. Available: {shown}. {fix}".rstrip())


def require_name(value: object, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise SetupError(f"{what}={value!r} must be a name, as text.")


def require_stored_name(value: object, what: str, fix: str = "Pass another name.") -> None:
    """Raise :class:`SetupError` unless ``value`` can name a column or key in a store."""
    if not isinstance(value, str) or "/" in value or not value.strip("."):
        raise SetupError(f"{what}={value!r} must be a text without '/', as it names a column or key in stores. {fix}")


def require_model(value: object, what: str = "model") -> None:
    """Raise :class:`SetupError` unless ``value`` is a model."""
    # By what it has, because the class lives above all that takes models.
    if not hasattr(type(value), "embedder"):
        raise SetupError(f"{what}={value!r} is a {type(value).__name__}. Pass a trained SIGMMA.")


def require_path(value: object, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` can be a path."""
    if not isinstance(value, (str, PathLike)) or not str(value):
        raise SetupError(f"{what}={value!r} must be a path.")


def require_list(value: object, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is a list or tuple of names, not empty."""
    names = list(value) if isinstance(value, (list, tuple)) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        hint = f" Write [{value!r}]." if isinstance(value, str) else ""
        raise SetupError(f"{what}={value!r} must be a list of names.{hint}")
    if len(set(names)) != len(names):
        raise SetupError(f"{what}={value!r} names one twice. Name each once.")


def require_name_by_region(value: object, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is a name, or names by region."""
    names = list(value.items()) if isinstance(value, Mapping) and value else [("", value)]
    for region, name in names:
        if not all(isinstance(text, str) for text in (region, name)) or not name:
            raise SetupError(f"{what}={value!r} must be a name, or a dict of names by region.")


def require_choice(value: object, choices: Iterable, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is one of ``choices``."""
    options = list(choices)
    if value not in options:
        raise SetupError(f"{what}={value!r} is not one of {', '.join(map(repr, options))}.")


def require_registered(value: object, names: Iterable, what: str, register: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is one of ``names``, to which ``register`` adds."""
    options = list(names)
    if not isinstance(value, str) or value not in options:
        raise SetupError(
            f"{what}={value!r} is not one of {', '.join(map(repr, options))}. To add one, call sg.{register}. On the command "
            "line, --import MODULE names a module that does."
        )


def require_new_name(name: object, value: object, registered: Mapping, what: str) -> None:
    """Raise :class:`SetupError` unless ``name`` is well formed and free; ``value`` itself may be registered again."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SetupError(f"{what}={name!r} must consist of letters, digits, '-' and '_'.")
    there = registered.get(name)
    # The same class or function is registered again when a cell of a notebook is run again.
    if there is not None and origin_of(there) != origin_of(value):
        raise SetupError(
            f"{what}={name!r} is registered already, {'.'.join(origin_of(there))}. Give yours another name."
        )


def origin_of(value: object) -> tuple[str, str]:
    """Module and name of a class or function, or of the class of an instance."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return named.__module__, str(getattr(named, "__qualname__"))  # noqa: B009 - objects in general have none


def require_positive(value: float, what: str) -> None:
    """Raise :class:`SetupError` unless ``value`` is a positive finite number."""
    if not is_number(value) or value <= 0:
        raise SetupError(f"{what}={value!r} must be a positive number.")


def require_interval(value: float | None) -> None:
    """Raise :class:`SetupError` unless ``value`` is ``None``, or a share of tiles that an interval can have."""
    if value is not None and not (is_number(value) and 0 < value < 1):
        raise SetupError(f"interval={value!r} must be a number between 0 and 1, such as 0.9, or None.")


def require_withhold(value: float | None) -> None:
    """Raise :class:`SetupError` unless ``value`` is ``None``, or a level of likeness."""
    if value is not None and not (is_number(value) and 0 <= value < 1):
        raise SetupError(f"withhold={value!r} must be a number from 0 to 1, such as 0.01, or None to keep all tiles.")


def require_fdr(value: float) -> None:
    """Raise :class:`SetupError` unless ``value`` is a level of false discoveries."""
    if not (is_number(value) and 0 < value < 1):
        raise SetupError(f"fdr={value!r} must be a number between 0 and 1, such as 0.1.")


def require_step(value: float | None) -> None:
    """Raise :class:`SetupError` unless ``value`` is ``None``, or a step by which crops overlap."""
    if value is not None and not (is_number(value) and 0 < value <= 1):
        raise SetupError(f"step={value!r} must be above 0 and at most 1, the side of a crop, or None.")


def require_whole(value: object, what: str, least: int = 1, most: int | None = None) -> None:
    """Raise :class:`SetupError` unless ``value`` is a whole number, ``least`` or more, and ``most`` or less."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise SetupError(f"{what}={value!r} must be a whole number, {least} or more.")
    if most is not None and int(value) > most:
        raise SetupError(f"{what}={value!r} is too large. The most is {most}.")


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number, of Python or NumPy; booleans are not numbers."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def require_divides(stride: float, tile_size: float) -> None:
    """Raise :class:`SetupError` unless a whole number of strides, to a thousandth, makes a tile; both in µm."""
    require_positive(stride, "stride")
    steps = tile_size / stride
    if steps > MOST_STEPS:
        raise SetupError(
            f"stride={stride!r} µm is too small. Its least is tile_size / {MOST_STEPS}, {tile_size / MOST_STEPS:g} µm."
        )
    if not 0.999 < steps / max(1, round(steps)) < 1.001:
        raise SetupError(f"stride={stride!r} µm must divide tile_size={tile_size} µm.")


def require_package(module: str, extra: str) -> None:
    """Raise :class:`MissingPackageError` unless ``module`` of the optional ``extra`` is installed."""
    if find_spec(module) is None:
        raise MissingPackageError(
            f'This needs the package {module!r}. Install it with pip install "sigmma-sc[{extra}]".'
        )
