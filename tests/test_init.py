import subprocess
import sys

HEAVY = ("torch", "scvi", "lightning", "spatialdata", "scanpy", "squidpy", "timm")
SCRIPT = f"""
import sys, time
start = time.perf_counter()
import sigmma_sc
print(time.perf_counter() - start, *[name for name in {HEAVY} if name in sys.modules])
"""


def test_import_is_cheap(tmp_path):
    seconds, loaded = [], set()
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True)
        first, *names = run.stdout.split()
        seconds.append(float(first))
        loaded.update(names)
    assert not loaded
    assert min(seconds) < 0.5
