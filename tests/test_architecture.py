import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def package(tmp_path):
    """A copy of the package as it is installed, beside the contracts; a run in ``tmp_path`` imports this one."""
    package = tmp_path / "sigmma_sc"
    shutil.copytree(Path(find_spec("sigmma_sc").origin).parent, package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return package


def lint(folder):
    run = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    return run.returncode, run.stdout + run.stderr


def test_contracts_are_kept(package):
    code, told = lint(package.parent)
    assert code == 0, told
    assert "0 broken" in told


@pytest.mark.parametrize(
    ("room", "line"), [("tissue", "import sigmma_sc.model"), ("tissue", "import torch"), ("nn", "import spatialdata")]
)
def test_an_upward_import_is_caught(package, room, line):
    with (package / room / "__init__.py").open("a") as file:
        file.write(f"\n{line}\n")
    code, told = lint(package.parent)
    assert code == 1, told
    assert f"sigmma_sc.{room}" in told
    assert "BROKEN" in told
