import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--device cpu --arch vit_tiny_patch16_224 --size 32 --tiles 4 --graph-tiles 8 --chunks 21 --matrix 256 --repeats 1"
)


def run(*arguments):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_gpu_benchmark_without_a_gpu_says_so():
    assert run() == "No GPU here: nothing to measure.\n"


@pytest.mark.slow
def test_gpu_benchmark_measures_everything_on_a_cpu():
    table = run(*SMALL.split()).rsplit("peak GiB", 1)[1].strip().splitlines()
    assert len(table) == 8  # frozen, lora, full and the towers, in two precisions
    assert all(float(line.split()[-4]) > 0 for line in table)
