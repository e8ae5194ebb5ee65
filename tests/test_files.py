import errno
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from sigmma_sc import _files
from sigmma_sc._files import fresh_file, fresh_folder, recover, require_writable, sweep
from sigmma_sc.errors import WriteError


def fill(path, text):
    with fresh_folder(path) as folder:
        (folder / "a").write_text(text)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        fill(tmp_path / "sub" / "out", text)
    assert (tmp_path / "sub" / "out" / "a").read_text() == "new"
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["out"]


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(TypeError):
        fill(tmp_path / "out", None)
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def two_steps(monkeypatch):
    """A system that cannot exchange two folders."""
    monkeypatch.setattr(_files, "_exchanged", lambda one, other: False)


def refuse(monkeypatch, tmp_path, *names):
    """Let renames of folders of these names fail."""
    rename = type(tmp_path).rename

    def refusing(self, target):
        if self.name in names:
            raise OSError(errno.EIO, "no")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", refusing)


def test_when_the_new_folder_cannot_move_in_the_old_one_comes_back(tmp_path, monkeypatch, two_steps):
    fill(tmp_path / "out", "old")
    with monkeypatch.context() as patched:
        refuse(patched, tmp_path, "new")
        with pytest.raises(WriteError, match="out cannot be written.*no"):
            fill(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_when_nothing_can_move_in_the_error_tells_where_both_are_and_the_next_start_recovers(
    tmp_path, monkeypatch, two_steps
):
    fill(tmp_path / "out", "old")
    with monkeypatch.context() as patched:
        refuse(patched, tmp_path, "new", "old")
        with pytest.raises(WriteError) as told:
            fill(tmp_path / "out", "new")
    (scratch,) = tmp_path.iterdir()
    assert (scratch / "old" / "a").read_text() == "old"
    assert (scratch / "new" / "a").read_text() == "new"
    assert f"The old folder is {scratch / 'old'}, the new one {scratch / 'new'}" in str(told.value)
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folders_are_exchanged_in_one_step_where_the_system_can(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    (tmp_path / "other").mkdir()
    if not _files._exchanged(tmp_path / "out", tmp_path / "other"):
        pytest.skip("this system or file system cannot exchange two folders")
    _files._exchanged(tmp_path / "out", tmp_path / "other")
    (tmp_path / "other").rmdir()
    # No other rename is needed, so that there is no moment without a folder at the place.
    refuse(monkeypatch, tmp_path, "out", "new", "old")
    fill(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_takes_its_place_whole_or_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    for text in ("old", "new"):
        with fresh_file(path) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    (tmp_path / ".a-00000000.part" / "new").mkdir(parents=True)  # of a writer that was killed
    with pytest.raises(TypeError), fresh_file(path) as part:
        part.write_text(None)
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


KILLED = """
import os, pathlib, signal, sys
from sigmma_sc import _files
rename, at = pathlib.Path.rename, sys.argv[2]
def killed(self, target):
    if self.name == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.rename = killed
_files._exchanged = lambda one, other: False
with _files.fresh_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("new")
    if at == "write":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("at", "found"), [("write", "old"), ("out", "old"), ("new", "new")])
def test_a_killed_writer_leaves_the_old_or_the_new_one(tmp_path, at, found):
    """While it writes, before the old one leaves, and between that and the new one's arrival."""
    fill(tmp_path / "out", "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out"), at])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".out-*.part"))) == 1
    recover(tmp_path / "ou")
    assert not (tmp_path / "ou").exists()
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == found
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    fill(tmp_path / "out", "newer")
    assert (tmp_path / "out" / "a").read_text() == "newer"


def test_scratch_in_use_stays_and_that_of_the_dead_goes_whatever_the_clock_says(tmp_path):
    """The times of the files are those of a clock that jumped."""
    of_others = ["a.part", ".a-mine.part", ".a-22222222.part", ".model-00000000.part", ".out-11111111.part"]
    for name in of_others[:3]:
        (tmp_path / name).write_text("x")
    for name in (".a-00000000.part", ".b-00000000.part", ".out-00000000.part", *of_others[3:]):
        (tmp_path / name / "new").mkdir(parents=True)
    (tmp_path / ".out-11111111.part" / "thesis.tex").write_text("x")
    with fresh_file(tmp_path / "a") as part, fresh_folder(tmp_path / "out") as folder:
        part.write_text("y")
        (folder / "b").write_text("y")
        for entry in tmp_path.iterdir():
            os.utime(entry, (0, 0))
        sweep(tmp_path, "a|b")
        recover(tmp_path / "out")
        used = [part.parents[1].name, folder.parent.name]
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(used + of_others)
    assert (tmp_path / "a").read_text() == (tmp_path / "out" / "b").read_text() == "y"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", "out", *of_others])


def test_scratch_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    flock = _files.fcntl.flock
    swept = []

    def late(handle, operation):
        if not swept:
            swept.append(next(tmp_path.glob(".*.part")))
            swept[0].rmdir()
        return flock(handle, operation)

    monkeypatch.setattr(_files.fcntl, "flock", late)
    fill(tmp_path / "out", "x")
    assert (tmp_path / "out" / "a").read_text() == "x"
    assert len(swept) == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_cannot_be_written_is_told_with_the_place(tmp_path, monkeypatch, error):
    def failing(*arguments, **options):
        raise OSError(error, os.strerror(error))

    fill(tmp_path / "out", "old")
    for name in ("mkdtemp", "TemporaryFile"):
        monkeypatch.setattr(_files.tempfile, name, failing)
    words = f"out cannot be written .*{os.strerror(error)}.*Free space there, allow writing, or give another path"
    with pytest.raises(WriteError, match=words):
        fill(tmp_path / "out", "new")
    with pytest.raises(WriteError, match=words), fresh_file(tmp_path / "out"):
        pass
    with pytest.raises(WriteError, match=words):
        require_writable(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_place_is_tried_without_a_trace(tmp_path):
    require_writable(tmp_path / "not" / "there" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="file/out cannot be written"):
        require_writable(tmp_path / "file" / "out")


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        fill(tmp_path / "out", "x")
        with fresh_file(tmp_path / "b") as part:
            part.write_text("x")
        os.umask(0o077)
        with fresh_file(tmp_path / "c") as part:
            part.write_text("x")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("out/a", "b", "c")]
    assert modes == [0o644, 0o644, 0o600]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_the_umask_is_never_set_for_it_is_that_of_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", None)
    fill(tmp_path / "out", "x")
    with fresh_file(tmp_path / "a") as part:
        part.write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "out" / "a").stat().st_mode


def test_scratch_that_another_writer_sweeps_away_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    made = tempfile.mkdtemp
    n_made = []

    def swept(**options):
        folder = made(**options)
        n_made.append(folder)
        if len(n_made) == 1:
            sweep(tmp_path, "a")
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with fresh_file(tmp_path / "a") as part:
        part.write_text("x")
    assert len(n_made) == 2
    assert (tmp_path / "a").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_was_meant_for_another_folder_is_left_alone(tmp_path):
    for name in ("old", "new"):
        (tmp_path / ".out-2-abcdefgh.part" / name).mkdir(parents=True)
    recover(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    recover(tmp_path / "out-2")
    assert (tmp_path / "out-2").exists()
    recover(tmp_path / "nowhere" / "out")
