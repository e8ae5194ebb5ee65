from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import pytest

from sigmma_sc._schema import require_fields, require_schema
from sigmma_sc.errors import SetupError


class Part(TypedDict):
    name: str
    size: float


class Whole(TypedDict):
    parts: list[Part]
    kind: Literal["a", "b"] | None
    of_any: Any


RIGHT = {"parts": [{"name": "x", "size": 1}], "kind": None, "of_any": object()}


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (RIGHT, Whole),
        ({**RIGHT, "parts": [], "kind": "b"}, Whole),
        (np.int64(3), int),
        (3, float),
        (np.float32(0.5), float),
        (float("nan"), float),
        (None, None),
        (("a", 1), tuple[str, int]),
        ((), tuple[str, ...]),
        ({"a": [[1], []]}, dict[str, list[list[int]]]),
        ("x", str | dict[str, int]),
    ],
)
def test_what_has_the_form_passes(value, schema):
    require_schema(value, schema, "here")


@pytest.mark.parametrize(
    ("value", "schema", "words"),
    [
        ([], Whole, r"here=\[\] must be a mapping"),
        ({"kind": "a", "of_any": 1}, Whole, "here lacks 'parts'"),
        ({**RIGHT, "more": 1}, Whole, "here has an unknown key 'more'"),
        ({**RIGHT, "kind": "c"}, Whole, r"here\['kind'\]='c' is not one of 'a', 'b'"),
        ({**RIGHT, "parts": [{"name": "x"}]}, Whole, r"here\['parts'\]\[0\] lacks 'size'"),
        (
            {**RIGHT, "parts": [{"name": "x", "size": "1"}]},
            Whole,
            r"here\['parts'\]\[0\]\['size'\]='1' must be a number",
        ),
        (True, int, "here=True must be a whole number"),
        (1.0, int, "here=1.0 must be a whole number"),
        (False, float, "here=False must be a number"),
        (1, bool, "here=1 must be true or false"),
        ("ab", list[str], "here='ab' must be a list"),
        (["a", 2], list[str], r"here\[1\]=2 must be a text"),
        (("a",), tuple[str, int], "must have 2 values"),
        ({1: 2}, dict[str, int], "A name in here=1 must be a text"),
        (3, str | dict[str, int], "here=3 must be a text or a mapping"),
        ({"a": "b"}, str | dict[str, int], r"here\['a'\]='b' must be a whole number"),
        ("x" * 500, int, "x…"),
    ],
)
def test_what_has_not_is_named_by_its_place(value, schema, words):
    with pytest.raises(SetupError, match=words) as told:
        require_schema(value, schema, "here", "Do this.")
    assert str(told.value).endswith("Do this.")


def test_fields_of_a_dataclass():
    @dataclass
    class Own:
        a: int
        b: tuple[str, ...] = ()

    require_fields(Own(1), "own:")
    with pytest.raises(SetupError, match=r"own: b\[0\]=3 must be a text"):
        require_fields(Own(1, (3,)), "own:")
