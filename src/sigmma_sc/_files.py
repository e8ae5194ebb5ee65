"""Files and folders that are written completely or not at all."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
STALE_SECONDS = 3600


@contextmanager
def fresh_folder(path: str | Path) -> Iterator[Path]:
    """Fill a new folder that replaces ``path`` when the block ends; on any error ``path`` is not changed."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    fresh = scratch / "new"
    old = scratch / "old"
    try:
        fresh.mkdir()
        yield fresh
        for file in fresh.rglob("*"):
            if file.is_file():
                _settle(file)
        if path.exists():
            path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def recover(path: Path) -> None:
    """Restore a complete new folder whose writer was killed after the old one had been moved away."""
    if path.exists():
        return
    # The whole name must match, so that "model" does not recover a folder of "model-2".
    scratched = re.compile(rf"\.{re.escape(path.name)}-[a-z0-9_]{{8}}")
    for scratch in path.parent.iterdir() if path.parent.is_dir() else ():
        if scratched.fullmatch(scratch.name) and (scratch / "old").exists() and (scratch / "new").exists():
            (scratch / "new").rename(path)
            shutil.rmtree(scratch, ignore_errors=True)
            return


@contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """Fill a new file that replaces ``path`` in one step, synced to disk, when the block ends without an error."""
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", suffix=PART, dir=path.parent)
    try:
        os.close(handle)
        yield Path(scratch)
        _settle(Path(scratch))
        os.replace(scratch, path)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _settle(file: Path) -> None:
    """Sync a file to disk, with permissions by the umask: temporary files are readable by the owner alone."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def sweep(folder: Path) -> None:
    """Remove partial files of killed processes; recent ones may still be in use."""
    for part in folder.glob(f".*{PART}"):
        try:
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()
        except FileNotFoundError:
            continue  # its writer, or another sweep, was faster
