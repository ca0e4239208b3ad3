"""Files that are written whole or not at all, tables as CSV, and names that may become names of files."""

from __future__ import annotations

import csv
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

TEMPORARY = ".*.xai-tmp"  # what a process that was killed has left
_FORBIDDEN = re.compile(r'[/\\<>:"|?*\x00-\x1f]')  # on one of the common file systems
_LONGEST = 120


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside a file, and give what is written there the file's name at the end.

    A reader sees the former file or the whole new one, also when the process is killed in between. Folders are made.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, replace_file(Path(folder, "new", "numbers.txt")) as temporary:
    ...     _ = temporary.write_text("1 2 3")
    ...     (temporary.parent.name, list(temporary.parent.glob("*.txt")))
    ('new', [])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The extension comes last, so that no pattern such as *.png finds it; several processes may write to one name.
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.xai-tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a crash after the renaming may leave an empty file under the name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write the names of columns and the rows below them; folders are made."""
    path = Path(path)
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


class CsvTable(ABC):
    """Lists a result as rows under named columns, and writes them.

    Class attributes:
        columns: The names of the columns.
    """

    columns: ClassVar[tuple[str, ...]]

    @abstractmethod
    def rows(self) -> Sequence[Sequence[Any]]:
        """Return the rows, an entry per column."""

    def to_csv(self, path: str | Path) -> Path:
        """Write the names of the columns and the rows below them; folders are made."""
        return write_csv(path, self.columns, self.rows())


def check_file_name(argument: str, name: Any) -> None:
    r"""Raise if a name cannot be that of a file in any folder.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is empty, hidden or long, or leads elsewhere.

    >>> check_file_name("metric", "../outside")
    Traceback (most recent call last):
    ValueError: metric '../outside' cannot name a file: it may not be empty, begin with a dot, have more than 120
    characters, or hold any of / \ < > : " | ? *
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a string, got {name!r}.")
    if not name.strip() or name.startswith(".") or _FORBIDDEN.search(name) or len(name) > _LONGEST:
        raise ValueError(
            f"{argument} {name!r} cannot name a file: it may not be empty, begin with a dot, have more than {_LONGEST} "
            r'characters, or hold any of / \ < > : " | ? *'
        )
