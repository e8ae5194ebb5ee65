"""What the package requires, it uses; what one kind of user needs is an extra."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = {
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "scvi-tools": "scvi",
}
"""Names to import, where they are not that of the package."""

BOUNDED = {"pynndescent"}
"""Packages that others require, and that pyproject.toml limits with a reason."""


def imported():
    """Roots of all that the package imports."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


def test_every_requirement_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert len(names) > 20
    modules = {MODULES.get(name, name.replace("-", "_")) for name in names - BOUNDED}
    assert modules - imported() == set()
