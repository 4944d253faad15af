# SPDX-License-Identifier: MIT
"""What a case gets in its hand: fresh names, children with other identities, errno names.

Limits: a case runs in a forked child whose working directory is its own fresh directory on the mount, so all
names are relative: that way directories above the mount need not be open to uid 65534. Not for threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import stat
import struct
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from .table import CaseFailed, Unsupported

NOBODY = 65534
TICK = 0.012  # s: longer than one tick of the kernel's coarse clock at 100 Hz

# errno.errorcode has one name for each number, and not always the one that manual pages use
COMMON_NAME = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK", errno.EAGAIN: "EAGAIN"}


def errno_name(error: OSError) -> str:
    if error.errno is None:
        return type(error).__name__
    return COMMON_NAME.get(error.errno) or errno.errorcode.get(error.errno, str(error.errno))


def same(got: Any, want: Any, what: str = "") -> Any:
    """Return `got`; raise CaseFailed unless it is the answer that POSIX or Linux dictates."""
    if got != want:
        raise CaseFailed(f"{what + ': ' if what else ''}got {got!r}, must be {want!r}")
    return got


def among(got: Any, allowed: Iterable[Any], what: str = "") -> None:
    """Raise CaseFailed unless `got` is allowed; returns nothing, since such answers may differ."""
    choices = tuple(allowed)
    if got not in choices:
        raise CaseFailed(f"{what + ': ' if what else ''}got {got!r}, must be one of {choices!r}")


class Context:
    """One run of one case. `fstype` is the mount's type, `elsewhere` a directory on another file system."""

    def __init__(self, fstype: str, elsewhere: str) -> None:
        self.fstype = fstype
        self.elsewhere = elsewhere
        self._serial = 0

    # names and things

    def path(self, stem: str = "n") -> str:
        """A fresh relative name; nothing is made."""
        self._serial += 1
        return f"{stem}{self._serial}"

    def file(self, data: bytes = b"", mode: int = 0o644) -> str:
        """A new regular file with these contents and exactly this mode."""
        name = self.path("file")
        with open(name, "xb", buffering=0) as handle:
            view = memoryview(data)
            while view:
                view = view[handle.write(view) :]
        os.chmod(name, mode)
        return name

    def dir(self, mode: int = 0o755) -> str:
        """A new directory with exactly this mode."""
        name = self.path("dir")
        os.mkdir(name)
        os.chmod(name, mode)
        return name

    def thing(self, kind: str) -> str:
        """A new object: absent, file, dir, full (a directory with an entry), symlink, fifo, sock or chr."""
        name = self.path(kind)
        if kind == "file":
            return self.file(b"contents")
        if kind in ("dir", "full"):
            os.mkdir(name)
            if kind == "full":
                os.mkdir(f"{name}/entry")
        elif kind == "symlink":
            os.symlink("target-of-symlink", name)
        elif kind in ("fifo", "sock", "chr"):
            fmt = {"fifo": stat.S_IFIFO, "sock": stat.S_IFSOCK, "chr": stat.S_IFCHR}[kind]
            os.mknod(name, fmt | 0o644, os.makedev(1, 3) if kind == "chr" else 0)
        elif kind != "absent":
            raise ValueError(kind)
        return name

    @contextlib.contextmanager
    def open(self, path: str, flags: int, mode: int = 0o666):
        """os.open whose descriptor is closed at the end of the block."""
        fd = os.open(path, flags, mode)
        try:
            yield fd
        finally:
            os.close(fd)

    # observations

    @staticmethod
    def errno_of(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """Name of the errno that the call raised, or "OK"."""
        try:
            fn(*args, **kwargs)
        except OSError as error:
            return errno_name(error)
        return "OK"

    @staticmethod
    def mode(path: str) -> str:
        """Permission bits as an octal string, so that a mismatch reads well."""
        return f"{stat.S_IMODE(os.lstat(path).st_mode):04o}"

    @staticmethod
    def data(path: str) -> bytes:
        with open(path, "rb", buffering=0) as handle:
            return handle.readall()

    @staticmethod
    def tick() -> None:
        """Wait until a time stamp taken from here on must be a later one."""
        time.sleep(TICK)

    def changed(self, path: str, operation: Callable[[], Any]) -> str:
        """Which of a, m, c moved forward by the operation, as in "mc"; "<" where one moved back."""
        before = os.lstat(path)
        self.tick()
        operation()
        after = os.lstat(path)
        letters = ""
        for letter in "amc":
            old, new = (getattr(s, f"st_{letter}time_ns") for s in (before, after))
            letters += letter if new > old else "" if new == old else f"{letter}<"
        return letters

    # children

    def run_as(self, uid: int, gid: int, fn: Callable[[], Any], groups: Iterable[int] = ()) -> Any:
        """Result of fn() in a child with this identity and no capabilities, or the errno's name."""
        wanted = list(groups)

        def drop() -> None:
            os.setgroups(wanted)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)

        return self._fork(fn, drop)

    def as_nobody(self, fn: Callable[[], Any], groups: Iterable[int] = ()) -> Any:
        return self.run_as(NOBODY, NOBODY, fn, groups)

    def in_child(self, fn: Callable[[], Any]) -> Any:
        """Result of fn() in a child, the errno's name, or the name of the signal that ended it."""
        return self._fork(fn, lambda: None)

    def start(self, fn: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
        """Start fn() in a child; the value is a function that waits for its result."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            run_and_send(writer, fn, prepare)
        os.close(writer)

        def join() -> Any:
            with open(reader, "rb") as pipe:
                blob = pipe.read()
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                return signal.Signals(os.WTERMSIG(status)).name
            return unpack(blob)

        return join

    def _fork(self, fn: Callable[[], Any], prepare: Callable[[], Any]) -> Any:
        return self.start(fn, prepare)()


def run_and_send(writer: int, fn: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> None:
    """In a child: run, write a length-prefixed pickle of (kind, value), and end without unwinding."""
    message: tuple[str, Any]
    try:
        prepare()
        message = ("value", fn())
    except OSError as error:
        message = ("errno", (errno_name(error), _where(error)))
    except CaseFailed as error:
        message = ("failed", str(error))
    except Unsupported as error:
        message = ("unsupported", str(error))
    except BaseException as error:
        message = ("error", f"{type(error).__name__}: {error}{_where(error)}")
    try:
        blob = pickle.dumps(message)
        blob = struct.pack("<I", len(blob)) + blob
        view = memoryview(blob)
        while view:
            view = view[os.write(writer, view) :]
    finally:
        os._exit(0)


def _where(error: BaseException) -> str:
    """The innermost line inside a case, so that a row of the table leads to the source."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if os.path.basename(frame.filename).startswith("cases_"):
            return f" ({os.path.basename(frame.filename)}:{frame.lineno}: {frame.line})"
    return ""


def unpack(blob: bytes) -> Any:
    """The value of a grandchild's message; its failures are raised again here."""
    if len(blob) < 4:
        return "no answer"
    kind, value = pickle.loads(blob[4:])
    if kind == "errno":
        return value[0]
    if kind == "failed":
        raise CaseFailed(value)
    if kind == "unsupported":
        raise Unsupported(value)
    if kind == "error":
        raise RuntimeError(value)
    return value
