import ast
import builtins
from pathlib import Path

import pytest

import sigmma_sc as sg

PACKAGE = Path(sg.__file__).parent


@pytest.mark.parametrize("kind", [sg.errors.SetupError, sg.errors.SigmmaError, ValueError])
def test_an_error_is_caught_by_its_public_name_or_the_builtin_kind(kind):
    with pytest.raises(kind, match="edges='all' is not one of"):
        sg.Config(edges="all")


def test_a_missing_key_tells_its_message_as_it_is_written():
    assert str(sg.errors.MissingKeyError("'a' is not there.\nUse 'b'.")) == "'a' is not there.\nUse 'b'."


def test_errors_are_defined_nowhere_else():
    kinds = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}
    kinds |= set(vars(sg.errors))
    found = [
        (path.name, node.name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and kinds & {ast.unparse(base).split(".")[-1] for base in node.bases}
    ]
    assert {name for _, name in found} >= {"SigmmaError", "SetupError", "CoverageWarning"}
    assert {file for file, _ in found} == {"errors.py"}
