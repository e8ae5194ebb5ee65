"""Whether a stored document has the form that a type annotation gives; the annotation is its schema."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from sigmma_sc.errors import SetupError

WORDS: dict[object, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping", list: "a list",
    tuple: "a list", types.NoneType: "null",
}  # fmt: skip


def require_schema(value: object, schema: Any, where: str, fix: str = "") -> None:  # noqa: ANN401 - an annotation
    """Raise :class:`SetupError` unless a value has the form of an annotation; it names the place in the document.

    Annotations may be made of plain types, ``Any``, unions, ``Literal``, ``dict``, ``list``, ``tuple`` and
    ``TypedDict``, which knows all keys. Whole numbers are numbers, and truth values are not.
    """
    for problem in _problems(value, schema, where):
        raise SetupError(f"{problem} {fix}".rstrip())


def require_fields(instance: object, where: str) -> None:
    """Raise :class:`SetupError` unless the fields of a dataclass have the types of their annotations."""
    for name, schema in get_type_hints(type(instance)).items():
        require_schema(getattr(instance, name), schema, f"{where} {name}")


def _problems(value: object, schema: Any, where: str) -> Iterator[str]:  # noqa: ANN401
    origin = get_origin(schema)
    if schema is Any:
        return
    if origin in (Union, types.UnionType):
        yield from _of_union(value, get_args(schema), where)
    elif origin is Literal:
        if value not in get_args(schema):
            yield f"{where}={value!r} is not one of {', '.join(map(repr, get_args(schema)))}."
    elif is_typeddict(schema):
        yield from _of_keys(value, schema, where)
    elif not _is(value, _kind(schema)):
        yield f"{where}={_shown(value)} must be {_words(schema)}."
    else:
        for part, kind, name in _parts(value, origin, get_args(schema)):
            yield from _problems(part, kind, f"{where}[{name!r}]" if name is not None else f"A name in {where}")
        if origin is tuple and get_args(schema)[-1] is not Ellipsis and len(tuple(value)) != len(get_args(schema)):  # type: ignore[arg-type]
            yield f"{where}={_shown(value)} must have {len(get_args(schema))} values."


def _of_union(value: object, kinds: tuple[Any, ...], where: str) -> Iterator[str]:
    if any(next(_problems(value, kind, where), None) is None for kind in kinds):
        return
    for kind in kinds:
        if _is(value, _kind(kind)):  # the kind is right, and something in it is not
            yield from _problems(value, kind, where)
            return
    yield f"{where}={_shown(value)} must be {' or '.join(map(_words, kinds))}."


def _of_keys(value: object, schema: Any, where: str) -> Iterator[str]:  # noqa: ANN401
    if not isinstance(value, Mapping):
        yield f"{where}={_shown(value)} must be a mapping."
        return
    hints = get_type_hints(schema)
    for name in sorted(map(str, value.keys() ^ hints.keys())):
        yield f"{where} lacks {name!r}." if name in hints else f"{where} has an unknown key {name!r}."
    for name, kind in hints.items():
        yield from _problems(value[name], kind, f"{where}[{name!r}]")


def _parts(
    value: Any,  # noqa: ANN401
    origin: object,
    kinds: tuple[Any, ...],
) -> Iterable[tuple[object, Any, object]]:
    """Parts of a container, each with its annotation and its name; names themselves have none."""
    if origin is dict:
        for key, part in value.items():
            yield key, kinds[0], None
            yield part, kinds[1], key
    elif origin is list or (origin is tuple and kinds[-1] is Ellipsis):
        for number, part in enumerate(value):
            yield part, kinds[0], number
    elif origin is tuple:
        for number, (part, kind) in enumerate(zip(value, kinds, strict=False)):
            yield part, kind, number


def _kind(schema: Any) -> Any:  # noqa: ANN401
    """Class of the values of an annotation, whatever is in them."""
    if is_typeddict(schema):
        return dict
    if get_origin(schema) is Literal:
        return type(get_args(schema)[0])
    return get_origin(schema) or schema


def _is(value: object, kind: Any) -> bool:  # noqa: ANN401
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is None:
        return value is None
    # A document has lists alone.
    return isinstance(value, (list, tuple) if kind is tuple else kind)


def _words(schema: Any) -> str:  # noqa: ANN401
    kind = types.NoneType if schema is None else _kind(schema)
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
