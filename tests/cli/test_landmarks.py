import numpy as np
import pytest

from sigmma_sc.cli.landmarks import read_landmarks
from sigmma_sc.errors import SetupError


def written(tmp_path, text):
    file = tmp_path / "marks.csv"
    file.write_text(text)
    return file


def test_pairs_are_places_on_the_image_and_among_the_cells(tmp_path):
    # Columns in any order, with others beside them, and spaces as people type them.
    file = written(tmp_path, "what, cell_x,cell_y,image_x ,image_y\nvessel, 1.5,2,30,40\nfold,-5,6e1,70,80\n")
    np.testing.assert_array_equal(read_landmarks(file), [[[30, 40], [1.5, 2]], [[70, 80], [-5, 60]]])


def test_a_column_names_the_slides(tmp_path):
    file = written(tmp_path, "slide,image_x,image_y,cell_x,cell_y\n2,1,2,3,4\na,5,6,7,8\n2,9,10,11,12\n")
    found = read_landmarks(file)
    assert list(found) == ["2", "a"]
    np.testing.assert_array_equal(found["2"], [[[1, 2], [3, 4]], [[9, 10], [11, 12]]])
    np.testing.assert_array_equal(found["a"], [[[5, 6], [7, 8]]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "image_x,image_y,x,y\n1,2,3,4\n",
            "lacks cell_x, cell_y: it has image_x, image_y, x, y. Its first line must name",
        ),
        ("image_x;image_y;cell_x;cell_y\n1;2;3;4\n", "lacks image_x, image_y, cell_x, cell_y: it has image_x;image_y"),
        (
            "image_x,image_y,cell_x,cell_y\n1,2,3,4\n1,2,3 µm,4\n",
            "pair 1 .from 0. has cell_x '3 µm', which is no number",
        ),
        ("image_x,image_y,cell_x,cell_y\n1,,3,4\n", "pair 0 .from 0. has image_y '', which is no number"),
        ("", "cannot be read: No columns"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, text, words):
    with pytest.raises(SetupError, match=words):
        read_landmarks(written(tmp_path, text))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SetupError, match=r"none\.csv cannot be read: .*No such file"):
        read_landmarks(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x89PNG")
    with pytest.raises(SetupError, match=r"bytes\.csv cannot be read"):
        read_landmarks(tmp_path / "bytes.csv")
