"""The main job of the command line, from a store to figures, beside an earlier version of the package.

    git worktree add /tmp/before 8e0b787
    python benchmarks/main_job.py STORE --before /tmp/before [--weights mobilenetv2_100.safetensors] [--set NAME=VALUE …]
    python benchmarks/main_job.py --demo --before /tmp/before

Every job is a process of its own, one after another: `sigmma-sc train` with an empty cache and again with the features in
it, for each version. CPU seconds of encoding are those of the first less those of the second. `--set` are options of this
version alone, such as crop_sizes=112,112,224. With `--demo`, `sigmma-sc demo` is run by both instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ENCODER = ["--encoder", "mobilenetv2_100", "--encoder-arg", "pad_type=same"]
ENCODER += ["--encoder-arg", "mean=0.5,0.5,0.5", "--encoder-arg", "std=0.5,0.5,0.5"]
HERE = Path(__file__).resolve().parents[1]


def run(source: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds and peak memory of one command of the package in a source tree."""
    command = [sys.executable, "-W", "ignore", "-c", "from sigmma_sc.cli import main; main()", *arguments]
    with tempfile.TemporaryFile() as told:
        start = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(source / "src")}
        child = subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            told.seek(0)
            raise SystemExit(f"{' '.join(arguments)} failed in {source}:\n{told.read().decode()[-2000:]}")
    return {"CPU, s": used.ru_utime + used.ru_stime, "wall, s": seconds, "peak, GB": used.ru_maxrss / 2**20}


def train(source: Path, given: argparse.Namespace, options: list[str], scratch: Path) -> list[dict[str, object]]:
    """A cold and a warm run, with the mean recall of each."""
    rows = []
    for cache in ("cold", "warm"):
        out = scratch / cache
        command = ["train", given.store, "--out", str(out), "--cache", str(scratch / "features")]
        command += ["--split", "blocks", "--epochs", str(given.epochs)]
        if given.weights:
            command += [*ENCODER, "--weights", given.weights]
        used = run(source, [*command, *options])
        table = pd.read_csv(out / "retrieval.csv").query("scale == 'all'")
        rows.append({"cache": cache, **used, "recall": table.filter(like="recall@").to_numpy().mean()})
        shutil.rmtree(out)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?")
    parser.add_argument("--before", type=Path, help="source tree of the earlier version")
    parser.add_argument("--weights", help="mobilenetv2_100.safetensors; the default encoder without")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of this version")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--demo", action="store_true")
    given = parser.parse_args()
    if (given.store is None) != given.demo:
        parser.error("give a store, or --demo")
    options = [text for pair in given.set for text in ("--set", pair)]
    sources = {"this": HERE}
    if given.before is not None:
        sources = {"before": given.before, "this": HERE}
    rows = []
    for name, source in sources.items():
        with tempfile.TemporaryDirectory() as scratch:
            if given.demo:
                found = [run(source, ["demo", "--out", f"{scratch}/demo"])]
            else:
                found = train(source, given, options if source == HERE else [], Path(scratch))
        rows += [{"version": name, **row} for row in found]
        print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
