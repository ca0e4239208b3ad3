"""Files that are written whole or not at all."""

import pytest

from lightning_xai._files import TEMPORARY, check_file_name, replace_file, write_csv, write_text
from lightning_xai.figures.canvas import new_figure, save


def test_a_file_that_fails_halfway_leaves_the_former_one(tmp_path):
    path = tmp_path / "numbers.txt"
    write_text(path, "former")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of a sentence\udc80")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("numbers.txt", "former")]


def rows():
    yield 1, 2
    raise KeyboardInterrupt


class Interrupted:
    def savefig(self, path, **_):
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "write", [lambda path: write_csv(path, ("a", "b"), rows()), lambda path: save(Interrupted(), path)]
)
def test_an_interrupted_table_or_picture_leaves_nothing(write, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_being_written_is_found_by_its_own_pattern_only(tmp_path):
    with replace_file(tmp_path / "map.png") as temporary:
        temporary.touch()
        assert (list(tmp_path.glob("*.png")), list(tmp_path.glob(TEMPORARY))) == ([], [temporary])
    assert list(tmp_path.iterdir()) == [tmp_path / "map.png"]


def test_pictures_are_png_whatever_their_temporary_name(tmp_path):
    with new_figure(1, 1) as figure:
        save(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["plain", "layer 3", "net.4", "grün"])
def test_names_of_files(name, tmp_path):
    check_file_name("metric", name)
    write_text(tmp_path / f"{name}.png", "")


@pytest.mark.parametrize("name", ["", " ", "..", ".hidden", "../outside", "a/b", "a\\b", "C:", "a\nb", "a" * 121])
def test_names_that_are_no_names_of_files(name):
    with pytest.raises(ValueError, match="cannot name a file"):
        check_file_name("metric", name)
