"""Picture of the page *Architecture*, from the import graph of the package. Run by hand: ``python docs/figures_architecture.py``.

Writes ``architecture.png`` into ``docs/_static/``. Needs grimp, which comes with import-linter.
"""

import sys
from pathlib import Path

import grimp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

from layer_list import layers  # noqa: E402

OUT = HERE / "_static" / "architecture.png"
BASE = ("config", "_keys", "_checks", "_files", "errors")
"""Files at the bottom, drawn as one box: nearly every room imports them."""

FACES = ("cli", "reporting", "benchmark", "baselines", "model", "pl", "tl", "pp")
FACE, ROOM, GROUND, LINE = "#FBE3C0", "#CFE6F5", "#E8E8E8", "#5A6B78"
WIDTH, HALF_HEIGHT = 1.4, 0.21
COLUMN = {
    "cli": 3.6, "reporting": 1.2, "benchmark": 3.6, "baselines": 0.0, "model": 0.0,
    "store": -1.7, "pp": 1.5, "tl": 3.0, "pl": 4.5,
    "train": -2.6, "infer": -0.6, "niches": 2.9,
    "features": -1.7, "nn": -2.6, "encoders": -2.6, "registration": 1.9,
    "tissue": 0.4, "metrics": -1.2, "io": 5.0, "datasets": 6.5,
}  # fmt: skip
"""Place from left to right; the layer gives the place from top to bottom."""

BEND = {
    ("benchmark", "io"): -0.34,
    ("pp", "features"): -0.12,
    ("benchmark", "datasets"): -0.15,
    ("infer", "metrics"): 0.1,
}
"""Arrows that would run behind a box."""


def imports() -> dict[str, set[str]]:
    """Rooms that each room imports when it runs; those that it reaches through another one are left out."""
    graph = grimp.build_graph("sigmma_sc", exclude_type_checking_imports=True, cache_dir=None)
    rooms = {name.split(".")[1] for name in graph.modules if "." in name} - set(BASE)
    direct: dict[str, set[str]] = {room: set() for room in rooms}
    for room in rooms:
        for module in graph.find_descendants(f"sigmma_sc.{room}") | {f"sigmma_sc.{room}"}:
            found = graph.find_modules_directly_imported_by(module)
            direct[room] |= {name.split(".")[1] for name in found if "." in name} & rooms - {room}
    return {room: {b for b in found if not _reached(direct, found - {b}, b)} for room, found in direct.items()}


def _reached(direct: dict[str, set[str]], start: set[str], goal: str) -> bool:
    seen = set(start)
    waiting = list(start)
    while waiting:
        for room in direct[waiting.pop()] - seen:
            seen.add(room)
            waiting.append(room)
    return goal in seen


def spread(room: str, others: set[str], at: dict[str, np.ndarray]) -> dict[str, float]:
    """Where along the edge of a room's box its arrows to or from other rooms begin or end, from left to right."""
    ordered = sorted(others, key=lambda other: np.arctan2(at[other][0] - at[room][0], abs(at[other][1] - at[room][1])))
    return dict(zip(ordered, np.linspace(-1, 1, len(ordered) + 2)[1:-1] * WIDTH / 2, strict=True))


def draw() -> plt.Figure:
    """Boxes, arrows, and the ground they stand on."""
    rows = [rooms for rooms in layers() if not set(rooms) & set(BASE)]
    edges = imports()
    at = {}
    for y, rooms in enumerate(rows):
        for room in rooms:
            at[room] = np.array([COLUMN[room], -float(y)])
    leave = {room: spread(room, found, at) for room, found in edges.items()}
    arrive = {room: spread(room, {a for a in edges if room in edges[a]}, at) for room in edges}
    figure, ax = plt.subplots(figsize=(7.3, 7.0), layout="constrained")
    for room, found in edges.items():
        for other in found:
            start = at[room] + [leave[room][other], -HALF_HEIGHT]
            end = at[other] + [arrive[other][room], HALF_HEIGHT]
            style = f"arc3,rad={BEND.get((room, other), 0.0)}"
            ax.add_patch(
                FancyArrowPatch(
                    start, end, arrowstyle="-|>", mutation_scale=10, connectionstyle=style, color=LINE, linewidth=1.0,
                    shrinkA=0, shrinkB=0, zorder=1,
                )
            )  # fmt: skip
    for room, centre in at.items():
        box(ax, centre, WIDTH, FACE if room in FACES else ROOM, f"{room}.py" if room == "model" else room)
    left, right = min(COLUMN.values()) - WIDTH / 2, max(COLUMN.values()) + WIDTH / 2
    ground = np.array([(left + right) / 2, -len(rows)])
    box(ax, ground, right - left, GROUND, "    ".join(f"{name}.py" for name in BASE))
    ax.set(xlim=(left - 0.1, right + 0.1), ylim=(-len(rows) - 0.35, 0.35))
    ax.axis("off")
    return figure


def box(ax: plt.Axes, centre: np.ndarray, width: float, colour: str, text: str) -> None:
    """A box with a name in it."""
    corner = centre - [width / 2, HALF_HEIGHT]
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(
        FancyBboxPatch(
            corner, width, 2 * HALF_HEIGHT, boxstyle=style, facecolor=colour, edgecolor=LINE, linewidth=0.9, zorder=2
        )
    )
    ax.text(*centre, text, ha="center", va="center", fontsize=9, family="monospace", zorder=3)


def main() -> None:
    """Draw it."""
    figure = draw()
    figure.savefig(OUT, dpi=140, metadata={"Software": None})
    Image.open(OUT).convert("RGB").save(OUT, optimize=True)
    print(f"{OUT.name}: {OUT.stat().st_size / 1000:.0f} kB, {Image.open(OUT).mode}")


if __name__ == "__main__":
    main()
