"""Files and folders that are written completely or not at all.

Until it is complete, what is written lies beside its place in a scratch folder, ``.<name>-<8 characters>.part``. Its
writer holds a lock on that. Scratch without a lock belongs to a writer that was killed, and is removed. No clock decides.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError, SigmmaError, WriteError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing swept away
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

PART = ".part"
NEW, OLD = "new", "old"
PROBE_BYTES = 2**16
HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


@dataclass(frozen=True)
class Saved:
    """A kind of folder with a JSON document and the tensors that it describes; neither format can execute anything."""

    # Names of the two files.
    json: str
    tensors: str
    format: int  # of the document as it is written
    # What the folder holds and what writes it, as messages name them.
    what: str
    writer: str
    oldest: int | None = None  # oldest format that is read; None for the present one alone

    def require_replaceable(self, path: str | Path, overwrite: bool) -> Path:
        """Path of a folder to write to; :class:`ExistsError` unless it is free or holds what may be replaced.

        :class:`WriteError` where nothing can be written.
        """
        path = Path(path).expanduser()
        recover(path)
        if path.exists() and not overwrite:
            raise ExistsError(f"{path} exists. Pass overwrite=True to replace it.")
        if path.exists() and not (path / self.json).exists():
            raise ExistsError(f"{path} exists and is no saved {self.what}; it is not replaced. Choose another path.")
        if path.exists() and (others := sorted({file.name for file in path.iterdir()} - {self.json, self.tensors})):
            raise ExistsError(f"{path} holds more than a saved {self.what} ({', '.join(others)}). Choose another path.")
        require_writable(path)
        return path

    def write(self, path: Path, described: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Write a document, with its format and the checksum of its tensors. A crash leaves the old folder or the new one."""
        from safetensors.torch import save_file

        with fresh_folder(path) as folder:
            save_file(tensors, folder / self.tensors)
            document = described | {"format": self.format, "checksum": checksum(folder / self.tensors)}
            (folder / self.json).write_text(json.dumps(document, indent=1))

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Document and tensors of a folder, or :class:`SetupError` where they do not belong together."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        recover(path)
        for name in (self.json, self.tensors):
            if not (path / name).is_file():
                raise MissingKeyError(
                    f"{path} holds no saved {self.what} ({name} is missing). Give the folder of {self.writer}."
                )
        damaged = f"The {self.what} in {path} is damaged, or was not written by {self.writer}"
        try:
            described = json.loads((path / self.json).read_text())
            tensors = load_file(path / self.tensors)
            found = checksum(path / self.tensors)
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise SetupError(f"{damaged}: {error}.") from error
        other = described.get("format") if isinstance(described, dict) else None
        oldest = self.format if self.oldest is None else self.oldest
        if not isinstance(other, int) or not oldest <= other <= self.format:
            readable = self.format if oldest == self.format else f"{oldest} to {self.format}"
            raise SetupError(
                f"{path} has format {other}, this version reads {readable}. Load it with the version of sigmma-sc that saved it."
            )
        if described.get("checksum") != found:
            raise SetupError(
                f"{damaged}: {self.tensors} is not the file that {self.json} describes. Put the right one back, or save the "
                f"{self.what} again."
            )
        return described, tensors


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def fresh_folder(path: str | Path) -> Iterator[Path]:
    """Fill a new folder that replaces ``path`` when the block ends; on any error ``path`` is not changed.

    What cannot be written raises :class:`WriteError`.
    """
    path = Path(path).absolute()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        with scratch_folder(path) as scratch:
            yield scratch / NEW
            for file in (scratch / NEW).rglob("*"):
                # A hard link is a file of someone else, whose permissions are its own.
                if file.is_file() and file.stat().st_nlink == 1:
                    settle(file, scratch / NEW)
            _take_place(scratch / NEW, path, scratch / OLD)


@contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """Fill a new file that replaces ``path`` in one step, synced to disk, when the block ends without an error.

    Scratch of killed writers of the same file is removed. What cannot be written raises :class:`WriteError`.
    """
    with writing(path):
        sweep(path.parent, re.escape(path.name))
    with writing(path), scratch_folder(path) as scratch:
        # In a folder, because some writers make a file beside it first, and rename that.
        file = scratch / NEW / path.name
        yield file
        settle(file, scratch / NEW)
        os.replace(file, path)


def recover(path: Path) -> None:
    """Restore a complete new folder whose writer was killed after the old one had been moved away.

    Scratch of all killed writers of ``path`` is removed.
    """
    for scratch in _scratches(path.parent, re.escape(path.name)):
        with _claimed(scratch) as dead:
            if dead and not path.exists() and (scratch / OLD).exists() and (scratch / NEW).exists():
                with writing(path):
                    (scratch / NEW).rename(path)
            if dead:
                shutil.rmtree(scratch, ignore_errors=True)


def sweep(folder: Path, name: str) -> None:
    """Remove what killed writers left of files whose name matches the regular expression ``name``; nothing else."""
    for scratch in _scratches(folder, name):
        with _claimed(scratch) as dead:
            if dead:
                shutil.rmtree(scratch, ignore_errors=True)


def require_writable(path: str | Path) -> None:
    """Raise :class:`WriteError` unless a small file can be written where ``path`` is to lie."""
    path = Path(path).expanduser().absolute()
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with writing(path), tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system and of safetensors into :class:`WriteError`, which names ``path`` and the fix."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, SigmmaError):
            raise
        raise WriteError(
            f"{path} cannot be written ({error}). What was there before is unchanged. Free space there, allow writing, or "
            "give another path."
        ) from error


def _take_place(fresh: Path, path: Path, old: Path) -> None:
    """Move a complete folder to its place, in one step where the system can exchange two folders."""
    if not path.exists():
        fresh.rename(path)
        return
    if _exchanged(fresh, path):
        return
    path.rename(old)
    try:
        fresh.rename(path)
    except OSError as error:
        try:
            old.rename(path)
        except OSError:
            raise WriteError(
                f"{path} was moved away, and nothing can be moved to its place ({error}). The old folder is {old}, the new one "
                f"{fresh}. Move one of them to {path}."
            ) from error
        raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where system or file system cannot."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return call(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0


def _scratches(folder: Path, name: str) -> list[Path]:
    """Scratch folders in a folder, of all names that match a regular expression."""
    # The whole name must match, so that "model" does not recover a folder of "model-2".
    scratched = re.compile(rf"\.(?:{name})-[a-z0-9_]{{8}}{re.escape(PART)}")
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry for entry in entries if scratched.fullmatch(entry.name) and _holds_scratch(entry)]


def _holds_scratch(entry: Path) -> bool:
    try:
        return set(os.listdir(entry)) <= {NEW, OLD}
    except (FileNotFoundError, NotADirectoryError):
        return False  # its writer has finished, or it is no folder


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A locked scratch folder beside ``path``, with an empty folder ``new``; removed in the end."""
    scratch, handle = _locked_scratch(path)
    try:
        (scratch / NEW).mkdir()
        yield scratch
    finally:
        # Where neither of two renames succeeded, both folders are left.
        if path.exists() or not (scratch / OLD).exists():
            shutil.rmtree(scratch, ignore_errors=True)
        _release(handle)


def _locked_scratch(path: Path) -> tuple[Path, int | None]:
    """A new scratch folder, and the handle that locks it."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=PART, dir=path.parent))
        if fcntl is None:
            return scratch, None
        try:
            handle = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:
            continue  # swept away before it was opened
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return scratch, handle  # a file system without locks, on which nothing is swept away either
        if scratch.exists():
            return scratch, handle
        os.close(handle)  # swept away before it was locked


@contextmanager
def _claimed(scratch: Path) -> Iterator[bool]:
    """Whether a scratch folder has no writer any more; it is locked meanwhile."""
    handle = None
    dead = False
    try:
        if fcntl is not None:
            handle = os.open(scratch, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead = True
    except OSError:
        dead = False  # in use, gone already, or on a file system without locks
    try:
        yield dead
    finally:
        _release(handle)


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def settle(file: Path, folder: Path) -> None:
    """Sync a file to disk, readable by whom a folder made by ``mkdir`` is: temporary files are readable by the owner alone."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
    # Not by os.umask, which can be asked by being set only, for all threads of the process.
    file.chmod(folder.stat().st_mode & 0o666)
