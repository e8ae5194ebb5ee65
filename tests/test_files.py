import os
import signal
import subprocess
import sys

import pytest

from sigmma_sc._files import fresh_file, fresh_folder, recover


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


def test_when_the_new_folder_cannot_move_in_the_old_one_comes_back(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename = type(tmp_path).rename

    def refuse(self, target):
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuse)
    with pytest.raises(OSError, match="no"):
        fill(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_file_takes_its_place_whole_or_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    for text in ("old", "new"):
        with fresh_file(path) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    with pytest.raises(TypeError), fresh_file(path) as part:
        part.write_text(None)
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


KILLED = """
import os, pathlib, signal, sys
from sigmma_sc._files import fresh_folder
rename, at = pathlib.Path.rename, sys.argv[2]
def killed(self, target):
    if self.name == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.rename = killed
with fresh_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("new")
"""


@pytest.mark.parametrize(("at", "found"), [("out", "old"), ("new", "new")])
def test_a_killed_writer_leaves_the_old_or_the_new_one(tmp_path, at, found):
    """Before the old one leaves, and between that and the new one's arrival."""
    fill(tmp_path / "out", "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out"), at])
    assert done.returncode == -signal.SIGKILL
    recover(tmp_path / "ou")
    assert not (tmp_path / "ou").exists()
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == found
    fill(tmp_path / "out", "newer")
    assert (tmp_path / "out" / "a").read_text() == "newer"


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


def test_what_was_meant_for_another_folder_is_left_alone(tmp_path):
    for name in ("old", "new"):
        (tmp_path / ".out-2-abcdefgh" / name).mkdir(parents=True)
    recover(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    recover(tmp_path / "out-2")
    assert (tmp_path / "out-2").exists()
    recover(tmp_path / "nowhere" / "out")
