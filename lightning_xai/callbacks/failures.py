"""Failures of the explanation, which are kept from ending the training."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LONGEST = 1000  # characters of a cause in a warning; all of them stand in the traceback


@dataclass
class Failures:
    """Contains what fails in one pass over the data: it is written down, warned of, and left out.

    Args:
        stage: What is being explained, e.g. ``"validate-epoch3"``.
        raises: Whether failures are raised after all.
        critical: The metrics whose failures are raised in any case, because the training depends on their numbers.
        file: Where tracebacks are written; None for nowhere, and they stand in the warning.
        deferred: Whether what is to be raised waits, see :meth:`reasons`, as other processes wait for this one.

    Attributes:
        causes: What failed, by metric; these are left out.
        reported: What was warned of besides metrics, in the whole pass; the same cause is told once.

    >>> failures = Failures("validate-epoch3")
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     with failures.contain("zero", ["zero"]):
    ...         raise ValueError("no such layer")
    >>> failures.causes
    {'zero': 'ValueError: no such layer'}
    >>> str(said[0].message).splitlines()[0]
    'zero is left out of validate-epoch3: ValueError: no such layer'
    """

    stage: str
    raises: bool = False
    critical: Collection[str] = ()
    file: Path | None = None
    deferred: bool = False
    causes: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)

    @contextmanager
    def contain(self, what: str, metrics: Collection[str] = ()) -> Iterator[None]:
        """Run something; if it fails, the metrics are left out.

        Args:
            what: What is being done, for the warning.
            metrics: The metrics that have no result if it fails.
        """
        try:
            yield
        except Exception as error:
            if not self.add(what, error, metrics):
                raise

    def add(self, what: str, error: Exception, metrics: Collection[str] = ()) -> bool:
        """Take up a failure; False if it is to be raised now."""
        cause = cause_of(error)
        news = [name for name in metrics if name not in self.causes]
        self.causes.update(dict.fromkeys(news, cause))
        if self.raises or any(name in self.critical for name in metrics):
            self.waiting.append(f"{what}: {cause}")
            if not self.deferred:
                return False
        message = f"{what} is left out of {self.stage}: {cause}"
        if news or not (metrics or message in self.reported):
            self.reported.add(message)
            self._report(message, error)
        return True

    def note(self, name: str, cause: str) -> None:
        """Take up that a metric failed in another process."""
        self.causes[name] = cause
        if not (self.raises or name in self.critical):
            warnings.warn(f"{name} is left out of {self.stage}: {cause}", UserWarning, stacklevel=2)

    def reasons(self) -> list[str]:
        """List what is to be raised once every process has come."""
        failed = [name for name in self.causes if name in self.critical or self.raises]
        return [*self.waiting, *(f"{name}: {self.causes[name]}" for name in failed)]

    def _report(self, message: str, error: Exception) -> None:
        trace = "".join(traceback.format_exception(error))
        where = f"\n{trace}"
        if self.file is not None:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{message}\n{trace}\n")
                    file.flush()
                    os.fsync(file.fileno())
                where = f" (traceback in {self.file})"
            except (OSError, ValueError) as unwritten:  # a full disk, a bad name: the warning is all that is left
                where = f" (its traceback could not be written: {unwritten})\n{trace}"
        warnings.warn(message + where, UserWarning, stacklevel=2)


def cause_of(error: BaseException) -> str:
    """Return the kind and the message of an error, shortened; its own method may fail, too.

    >>> cause_of(KeyError("zero"))
    "KeyError: 'zero'"
    """
    try:
        message = str(error)
    except Exception as unreadable:
        message = f"its message cannot be read, {type(unreadable).__name__}"
    rest = " ..." if len(message) > LONGEST else ""
    return f"{type(error).__name__}: {message[:LONGEST]}{rest}"


def warn_once(warned: set[str], message: str) -> None:
    """Warn, unless the same warning was given."""
    if message not in warned:
        warned.add(message)
        warnings.warn(message, UserWarning, stacklevel=2)
