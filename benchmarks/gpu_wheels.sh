#!/usr/bin/env bash
# Wheels for a GPU machine that has no network, by name and version: what the package needs and the machine lacks.
#
#   on the GPU machine:  python -m pip list --format freeze >have.txt
#   here:                bash benchmarks/gpu_wheels.sh have.txt wheels
#   on the GPU machine:  python -m pip install --no-index --no-deps --target site wheels/*.whl
#                        PYTHONPATH=src:site python benchmarks/gpu.py
#
# Versions are those of the environment of `python` here, which has to run the package, on the minor version of Python of the
# GPU machine. What that machine has stays as it is. Usage: gpu_wheels.sh HAVE FOLDER
set -euo pipefail

have=$1
folder=$2
mkdir -p "$folder"

python - "$have" >"$folder/wheels.txt" <<'PYTHON'
import re
import sys
from importlib.metadata import distribution

from packaging.requirements import Requirement


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


have = {canonical(line.partition("==")[0]) for line in open(sys.argv[1])}
waiting = [Requirement("sigmma-sc[encoders]")]
seen = set()
while waiting:
    requirement = waiting.pop()
    name = canonical(requirement.name)
    key = name, tuple(sorted(requirement.extras))
    if key in seen or name in have:
        continue
    seen.add(key)
    found = distribution(name)
    for line in found.requires or ():
        needed = Requirement(line)
        extras = requirement.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            waiting.append(needed)
    if name != "sigmma-sc":
        print(f"{found.metadata['Name']}=={found.version.partition('+')[0]}")
PYTHON
sort -u -o "$folder/wheels.txt" "$folder/wheels.txt"

platforms=()
for tag in manylinux1_x86_64 manylinux2014_x86_64 manylinux_2_17_x86_64 manylinux_2_27_x86_64 manylinux_2_28_x86_64; do
  platforms+=(--platform "$tag")
done
version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
get=(python -m pip --disable-pip-version-check --quiet)
while read -r name; do
  "${get[@]}" download --no-deps --dest "$folder" --only-binary=:all: --python-version "$version" "${platforms[@]}" "$name" 2>/dev/null ||
    "${get[@]}" wheel --no-deps --wheel-dir "$folder" "$name" # published as source alone
done <"$folder/wheels.txt"
echo "$(wc -l <"$folder/wheels.txt") wheels in $folder, $(du -sm "$folder" | cut -f1) MiB"
