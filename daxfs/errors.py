# SPDX-License-Identifier: MIT
"""L0: the exceptions that daxfs raises, each with the errno a caller sees.

Every error is an OSError, so that ``fuse/handler.py`` has one rule (errno to
FUSEError) and the commands have one (message to stderr). Imports nothing of
daxfs.
"""

import errno
import os


class DaxfsError(OSError):
    """An error with an errno and a sentence that says what to do.

    ``str()`` gives the sentence alone; ``errno`` the number for the caller.
    """

    default_errno = errno.EIO

    def __init__(self, message: str, code: int | None = None):
        super().__init__(code if code is not None else self.default_errno, message)

    def __str__(self) -> str:
        return self.strerror or ""

    def __reduce__(self):
        return type(self), (self.strerror, self.errno)  # OSError's own has the two the other way round


class SourceError(DaxfsError):
    """A source (file, pool directory, device) can't be used: missing, busy, foreign, shrunken."""

    default_errno = errno.EINVAL


class FormatError(DaxfsError):
    """What is on the media is not a daxfs region, or one of another revision."""

    default_errno = errno.EINVAL


class CorruptError(DaxfsError):
    """Metadata on the media contradict themselves; fsck.daxfs has more to say.

    The kernel's file systems use EUCLEAN for this ("Structure needs cleaning").
    """

    default_errno = errno.EUCLEAN


class PoisonError(DaxfsError):
    """Data that a request needs are on poisoned pages (docs/poison.md): EIO, as of bad blocks."""


class PinnedError(DaxfsError):
    """The file system below frees no page of a file that somebody's I/O has pinned (docs/mappings.md).

    Nothing has changed, and it may be tried again. Linux waits; the errno is what a proposal of 2019 had
    truncate(2) say in its place.
    """

    default_errno = errno.ETXTBSY


class UsageError(DaxfsError):
    """An option or its value is wrong, or can't be had on this machine."""

    default_errno = errno.EINVAL


def sentence(exc: OSError) -> str:
    """One line for *exc*: a DaxfsError's own text, else what the system says, with the file's name."""
    if exc.filename is not None and exc.strerror:
        return f"{os.fsdecode(exc.filename) or repr('')}: {exc.strerror}"
    return " ".join((exc.strerror or str(exc) or os.strerror(exc.errno or errno.EIO)).split())


def fail(code: int, what: str = "") -> DaxfsError:
    """The exception for a plain POSIX failure of one operation, e.g. ``raise fail(ENOENT)``."""
    return DaxfsError(what or os.strerror(code), code)
