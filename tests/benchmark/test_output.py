import errno
import os

import pytest

from sigmma_sc.benchmark import output
from sigmma_sc.benchmark.output import NAMES, fresh_output, require_own
from sigmma_sc.errors import ExistsError, WriteError

EVERY = [*NAMES, "figures/a.png"]


def write(out, text, figures=("a.png",)):
    with fresh_output(out) as folder:
        (folder / "figures").mkdir()
        for name in [*NAMES, *(f"figures/{figure}" for figure in figures)]:
            (folder / name).write_text(text)


def texts(out):
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file() and p.name[0] != "."}


def test_what_was_written_is_replaced_and_figures_of_before_go(tmp_path):
    write(tmp_path / "out", "old", ["a.png", "b.png"])
    require_own(tmp_path / "out", ["a.png", "b.png"])
    write(tmp_path / "out", "new")
    assert texts(tmp_path / "out") == dict.fromkeys(EVERY, "new")
    require_own(tmp_path / "out", ["a.png"])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("when", ["before", "after", "a folder"])
def test_a_file_of_the_user_is_refused_by_name(tmp_path, name, when):
    out = tmp_path / "out"
    out.mkdir()
    if when != "before":
        write(out, "ours", ["b.png"])
    path = out / name
    path.parent.mkdir(exist_ok=True)
    if when == "a folder":
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        path.write_text("mine")
    with pytest.raises(ExistsError, match=f"out holds {name}, which this benchmark did not write"):
        require_own(out, ["a.png"])


def test_a_file_in_place_of_the_folder_of_figures_is_refused(tmp_path):
    (tmp_path / "figures").write_text("mine")
    with pytest.raises(ExistsError, match="holds figures, which this benchmark did not write"):
        require_own(tmp_path, ["a.png"])


def test_what_else_lies_there_stays(tmp_path):
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    for name in ("thesis.tex", "figures/mine.png", "figures/b.png"):
        (out / name).write_text("mine")
    require_own(out, ["a.png"])
    write(out, "ours")
    write(out, "newer")
    assert {name: text for name, text in texts(out).items() if text == "mine"}.keys() == {
        "thesis.tex", "figures/mine.png", "figures/b.png",
    }  # fmt: skip


@pytest.mark.parametrize("n", range(1, len(EVERY) + 4))
def test_stopped_at_any_rename_it_leaves_old_and_new_files_that_the_next_run_knows(tmp_path, monkeypatch, n):
    out = tmp_path / "out"
    write(out, "old")
    replace = os.replace
    done = []

    def stopping(source, target):
        done.append(target)
        if len(done) == n:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    try:
        write(out, "new")
    except KeyboardInterrupt:
        assert len(done) == n
    else:
        assert len(done) == len(EVERY) + 2 < n
    monkeypatch.undo()
    assert texts(out).keys() == set(EVERY)
    assert set(texts(out).values()) <= {"old", "new"}
    require_own(out, ["a.png"])
    write(out, "newer")
    assert texts(out) == dict.fromkeys(EVERY, "newer")


@pytest.mark.parametrize("damage", ["", "[]", '{"report.md": 3}', "\x00"])
def test_without_the_record_nothing_is_replaced(tmp_path, damage):
    write(tmp_path, "old")
    (tmp_path / output.WRITTEN).write_text(damage)
    with pytest.raises(ExistsError, match="results.parquet, genes.parquet, .*, figures/a.png, which"):
        require_own(tmp_path, ["a.png"])


def test_where_nothing_can_be_written_it_is_told_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExistsError, match="file is a file. Pass another folder"):
        require_own(tmp_path / "file", [])

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sigmma_sc._files.tempfile.TemporaryFile", full)
    with pytest.raises(WriteError, match="cannot be written .*No space left"):
        require_own(tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
