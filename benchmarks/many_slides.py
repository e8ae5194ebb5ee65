"""Memory and time of the command line on a cohort, by the number of its slides, and a cohort that is killed on the way.

    python benchmarks/many_slides.py --slides 6 24 --cells 50000
    python benchmarks/many_slides.py --slides 4 --cells 5000 --kills 3

Simulated slides are written as stores. `sigmma-sc train` with a manifest then encodes, trains, embeds and clusters them, in
a process of its own. With --kills the same command is also killed at random moments and started again, as often as that,
and its embeddings and niches are compared with those of the undisturbed run, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import spatialdata

from sigmma_sc.datasets import simulate_tissue


def write_slides(folder: Path, n_slides: int, n_cells: int) -> Path:
    """Stores of a donor each, and their manifest."""
    lines = ["path,sample,donor"]
    for k in range(n_slides):
        sdata = simulate_tissue(n_cells=n_cells, seed=k, microns_per_pixel=1.0)
        del sdata["table"].obs["donor"]
        sdata.write(folder / f"slide{k}.zarr")
        lines.append(f"slide{k}.zarr,s{k},donor{k}")
    manifest = folder / "cohort.csv"
    manifest.write_text("\n".join(lines))
    return manifest


def command(manifest: Path, out: Path, kept: Path, epochs: int) -> list[str]:
    """Of one run, which keeps features and the state of training."""
    program = [sys.executable, "-W", "ignore", "-c", "from sigmma_sc.cli import main; main()", "train"]
    kept_there = ["--cache", str(kept / "features"), "--checkpoints", str(kept / "state")]
    return [*program, "--manifest", str(manifest), "--out", str(out), "--epochs", str(epochs), *kept_there]


def run(manifest: Path, out: Path, kept: Path, epochs: int) -> dict[str, float]:
    """CPU seconds and peak memory."""
    child = subprocess.Popen(command(manifest, out, kept, epochs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start = time.perf_counter()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"The run on {manifest} failed.")
    seconds = time.perf_counter() - start
    return {"CPU, s": used.ru_utime + used.ru_stime, "wall, s": seconds, "peak, GB": used.ru_maxrss / 2**20}


def killed(manifest: Path, out: Path, kept: Path, epochs: int, seconds: float, n_kills: int) -> None:
    """The same, killed at random moments before it ends."""
    rng = random.Random(0)
    for _ in range(n_kills):
        child = subprocess.Popen(
            command(manifest, out, kept, epochs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        at = rng.uniform(0.1, 0.9) * seconds
        try:
            child.wait(at)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        print(
            f"killed after {at:.0f} s: {sorted(path.name for path in kept.iterdir()) if kept.exists() else []}",
            flush=True,
        )
        if out.exists():
            return
    run(manifest, out, kept, epochs)


def same(one: Path, other: Path) -> bool:
    """Whether two runs embedded and clustered alike, to the bit."""
    pd.testing.assert_frame_equal(pd.read_parquet(one / "niches.parquet"), pd.read_parquet(other / "niches.parquet"))
    for place in sorted((one / "slides").iterdir()):
        here, there = (
            spatialdata.read_zarr(run / "slides" / place.name / "cells.zarr")["table"] for run in (one, other)
        )
        for key in here.obsm:
            np.testing.assert_array_equal(here.obsm[key], there.obsm[key])
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--cells", type=int, default=50_000, help="cells of a slide")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for n_slides in given.slides:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            manifest = write_slides(folder, n_slides, given.cells)
            used = run(manifest, folder / "run", folder / "kept", given.epochs)
            rows.append({"slides": n_slides, "cells": n_slides * given.cells, **used})
            rows[-1]["CPU ms a cell"] = 1000 * used["CPU, s"] / rows[-1]["cells"]
            print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)
            if given.kills:
                killed(manifest, folder / "again", folder / "kept2", given.epochs, used["wall, s"], given.kills)
                print("the same bits:", same(folder / "run", folder / "again"), flush=True)


if __name__ == "__main__":
    main()
