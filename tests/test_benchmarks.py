import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ["environment", "correctness", "waits", "processes", "graph", "encoder", "data_path", "product"]


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py as a module; the environment stays as it is."""
    for name in ("JAX_PLATFORMS", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, os.environ.get(name, "cpu" if name == "JAX_PLATFORMS" else ""))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, out, *arguments):
    return module.main(["--device", "cpu", "--small", "--out", str(out), *arguments])


def test_gpu_benchmark_without_a_gpu_says_so(gpu, tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == "No GPU here: nothing to measure.\n"
    assert not (tmp_path / "gpu.json").exists()


def test_gpu_benchmark_finds_the_cpu_right(gpu, tmp_path):
    out = tmp_path / "gpu.json"
    assert run(gpu, out, "--only", "environment", "correctness", "processes", "graph") == 0
    found = json.loads(out.read_text())
    assert list(found) == ["environment", "correctness", "processes", "graph"]
    for name, value in found["correctness"].items():
        if "half" in name:
            assert 0 <= (value[0] if isinstance(value, list) else value) < 0.02, name
        elif name != "seconds" and "uniform" not in name:
            assert value in (0, [0, 0]), name
    least, most, mean = found["correctness"]["uniform numbers: least, most, mean"]
    assert 0 < least < most < 1
    assert mean == pytest.approx(0.5, abs=0.01)
    assert all(row["step ms"] > 0 for name, row in found["graph"].items() if name != "seconds")
    assert found["processes"]["gradient, torch.float32"] == 0


def test_gpu_benchmark_survives_an_error_and_a_cut(gpu, tmp_path, monkeypatch, capsys):
    def wrong(bench):
        bench.note("wrong", "before", 1)
        raise RuntimeError("no such kernel")

    def right(bench):
        bench.note("right", "value", 2)

    def cut_off(bench):
        bench.note("cut_off", "value", 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "SECTIONS", (wrong, right, cut_off, wrong))
    out = tmp_path / "gpu.json"
    with pytest.raises(KeyboardInterrupt):
        run(gpu, out)
    found = json.loads(out.read_text())
    assert found["wrong"].pop("seconds") >= 0
    assert found["wrong"] == {"before": 1, "error": "RuntimeError: no such kernel"}
    assert found["right"]["value"] == 2
    assert found["cut_off"] == {"value": 3}
    monkeypatch.setattr(gpu, "SECTIONS", (wrong, right))
    assert run(gpu, out) == 1
    assert "no such kernel" in capsys.readouterr().err


def test_gpu_benchmark_begins_nothing_that_it_has_no_time_for(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SECTIONS", (gpu.environment, gpu.product))
    begun = time.perf_counter()
    assert run(gpu, tmp_path / "gpu.json", "--seconds", "1") == 0
    assert time.perf_counter() - begun < 10
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found == {name: {"left out": "no time left"} for name in ("environment", "product")}


@pytest.mark.slow
def test_gpu_benchmark_measures_everything_on_a_cpu(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--small", "--seconds", "3000"]
    done = subprocess.run([*command, "--out", tmp_path / "gpu.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == SECTIONS
    assert not any("error" in section for section in found.values())
    for regime in ("frozen", "lora", "full"):
        losses = found["product"][f"{regime}, losses (alike but for their last digits)"]
        assert losses["CPU"] == losses["float32"] == losses["auto"]
        assert found["product"][f"{regime}, loaded on the CPU, embeddings apart"] == 0


def test_wheels_that_a_machine_lacks(tmp_path):
    """All of the closure but what is there; what pip is asked for is recorded in its place."""
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    there = sorted(name for name in names if name.lower() not in ("peft", "typer", "sigmma-sc"))
    (tmp_path / "have.txt").write_text("".join(f"{name}==1.0+local\n" for name in there))
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = pip ]; then echo "$@" >>"{tmp_path}/asked.txt"; else exec "{sys.executable}" "$@"; fi\n'
    )
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", ROOT / "benchmarks" / "gpu_wheels.sh", tmp_path / "have.txt", tmp_path / "wheels"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    expected = [f"{name}=={importlib.metadata.version(name)}" for name in ("peft", "typer")]
    assert (tmp_path / "wheels" / "wheels.txt").read_text().split() == expected
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == expected
    assert all(" download --no-deps " in line and "--only-binary=:all:" in line for line in asked)
