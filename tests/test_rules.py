"""Rules of the code that no linter has: see *Style* in CONTRIBUTING.md and the page *Architecture*."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sigmma_sc"
FACES = ("model.py", "cli", "reporting", "baselines", "benchmark", "pl", "tl", "pp")
"""What may take a model as an argument."""

STRICT = ("features", "infer", "store", "train", "nn", "registration")
"""Rooms that keep every rule; the rest is to follow."""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
UNTESTED = {
    "_checks.py",
    "_keys.py",
    "baselines/bleep.py",
    "baselines/clip.py",
    "baselines/one_scale.py",
    "cli/results.py",
    "datasets/_section.py",
    "metrics/__init__.py",
    "pl/_finish.py",
    "pl/composition.py",
    "pl/edges.py",
    "pl/niches.py",
    "pl/registration.py",
    "pl/retrieval.py",
    "pl/signature.py",
    "pl/training.py",
    "pp/registration.py",
    "tissue/byimage.py",
    "tissue/cells.py",
    "tl/rank_niche_genes.py",
    "tl/transfer_labels.py",
}
"""Source files without a test file of their own. The list may only become shorter."""


def sources(*rooms):
    files = sorted(SOURCE.rglob("*.py"))
    return [path for path in files if not rooms or path.relative_to(SOURCE).parts[0] in rooms]


def parameters(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [one.arg for one in every if one is not None]


def targets(statement):
    """What a statement assigns to or deletes, with what that is made of."""
    if isinstance(statement, (ast.Assign, ast.Delete)):
        places = statement.targets
    elif isinstance(statement, (ast.AugAssign, ast.AnnAssign)):
        places = [statement.target]
    else:
        return
    for place in places:
        yield from ast.walk(place)


def calls(node, *names):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def of_the_model(node):
    """What a node has to do with a model as a whole."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and "model" in parameters(node):
        yield "takes a model"
    for place in targets(node):
        if isinstance(place, ast.Attribute) and isinstance(place.value, ast.Name) and place.value.id == "model":
            yield "assigns to a model"


def of_style(node):
    """What a node does that the package does not do."""
    if calls(node, "setattr", "delattr"):
        yield "sets an attribute by its name"
    for place in targets(node):
        if calls(place, "getattr", "vars") or (isinstance(place, ast.Attribute) and place.attr == "__dict__"):
            yield "sets an attribute by its name"
    if isinstance(node, COMPREHENSIONS) and sum(isinstance(part, COMPREHENSIONS) for part in ast.walk(node)) > 1:
        yield "holds a comprehension in another"
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        yield "catches everything"
    if isinstance(node, ast.Assert):
        yield "asserts"


def breaches(tree, rule):
    found = []
    for node in ast.walk(tree):
        found += [f"line {node.lineno} {what}" for what in rule(node)]
    return found


def in_files(paths, rule):
    found = []
    for path in paths:
        lines = breaches(ast.parse(path.read_text(encoding="utf-8")), rule)
        found += [f"{path.relative_to(SOURCE)}: {line}" for line in lines]
    return found


def test_nothing_below_the_faces_knows_the_model():
    below = [path for path in sources() if path.relative_to(SOURCE).parts[0] not in FACES]
    assert len(below) > 50
    assert in_files(below, of_the_model) == []


@pytest.mark.parametrize("room", STRICT)
def test_style(room):
    assert sources(room)
    assert in_files(sources(room), of_style) == []


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("def f(data, *, model=None): ...", of_the_model),
        ("lambda model: 1", of_the_model),
        ("model.state = 1", of_the_model),
        ("model.state, b = 1, 2", of_the_model),
        ("model.epochs += 1", of_the_model),
        ("del model.state", of_the_model),
        ("setattr(a, 'b', 1)", of_style),
        ("getattr(a, b)[0] = 1", of_style),
        ("vars(a)['b'] = 1", of_style),
        ("a.__dict__['b'] = 1", of_style),
        ("[[b for b in a] for a in c]", of_style),
        ("{a: sum(b for b in a) for a in c}", of_style),
        ("try:\n    a\nexcept:\n    b", of_style),
        ("assert a", of_style),
    ],
)
def test_a_breach_is_seen(line, rule):
    assert len(breaches(ast.parse(line), rule)) == 1


@pytest.mark.parametrize("line", ["getattr(a, b)", "b = model.state", "runner.model = 1", "[a for a in b]"])
def test_what_is_allowed(line):
    assert breaches(ast.parse(line), of_the_model) == breaches(ast.parse(line), of_style) == []


def layers(shown):
    """Layers, each a sorted list of rooms, of ``a > b | c``."""
    return [sorted(layer.split("|")) for layer in re.sub(r"\s", "", shown).split(">")]


def test_contributing_shows_the_layers_of_the_contract():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    shown = re.search(r"^```\n(cli >.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
    assert layers(shown[1]) == layers(" > ".join(contract["layers"]))


def rows_of_the_page(heading):
    """Cells of the first table below a heading of docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_in(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_page_shows_every_room():
    shown = []
    for room, _ in rows_of_the_page("Rooms"):
        shown += [name.removesuffix("/") for name in names_in(room)]
    rooms = {path.relative_to(SOURCE).parts[0] for path in sources()}
    assert sorted(shown) == sorted(rooms - {"__init__.py"})


def test_the_page_names_functions_where_they_are():
    rows = rows_of_the_page("From an object to embeddings")
    assert len(rows) > 15
    for _, _, functions, files in rows:
        trees = [ast.parse((SOURCE / name).read_text(encoding="utf-8")) for name in names_in(files)]
        defined = set()
        for node in [node for tree in trees for node in ast.walk(tree)]:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
        assert set(names_in(functions)) <= defined
    for what, place, register in rows_of_the_page("What to open"):
        for name in names_in(place) + names_in(register):
            assert not name.endswith(".py") or (SOURCE / name).exists(), what


def test_the_picture_is_small():
    picture = ROOT / "docs" / "_static" / "architecture.png"
    assert picture.stat().st_size < 200_000
    assert Image.open(picture).mode == "RGB"


def own_test_file(path):
    """Test file of a source file; None for one without a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not any(isinstance(node, (ast.FunctionDef, ast.Lambda)) for node in ast.walk(tree)):
        return None
    folder = path.relative_to(SOURCE).parent
    if path.name != "__init__.py":
        return folder / f"test_{path.stem.removeprefix('_')}.py"
    # A package's own code is tested beside the folder of its files.
    return folder.parent / f"test_{folder.name or 'init'}.py"


def test_every_source_file_has_a_test_file():
    missing = set()
    for path in sources():
        name = own_test_file(path)
        if name is not None and not (ROOT / "tests" / name).exists():
            missing.add(path.relative_to(SOURCE).as_posix())
    assert sorted(missing - UNTESTED) == [], "write the test file, named after the source file"
    assert sorted(UNTESTED - missing) == [], "take these off the list, they are tested or gone"
