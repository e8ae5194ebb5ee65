import pytest

from sigmma_sc._files import fresh_file, fresh_folder


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
