# SPDX-License-Identifier: MIT
"""What all commands share: how they end, how they read sizes, how they show progress.

Limits: no command's own meaning; nothing of pyfuse3 or trio. A message is one line on stderr,
``PROG: sentence``; a traceback is shown with DAXFS_DEBUG=1 alone.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import time
import traceback
import uuid as uuidlib
from collections.abc import Callable, Iterator

import click

from daxfs.errors import UsageError, sentence

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_ADMIN_PATH = os.pathsep + os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


def run(command: click.Command, prog: str, failure: Callable[[OSError], int], argv=None, usage=1) -> int:
    """Run a click *command* and give its exit status.

    *failure* says which status an OSError (a DaxfsError is one) stands for; *usage* is the one for a wrong
    command line. Whatever happens, the user gets one line, never a traceback.
    """
    open_streams()
    try:
        status = command.main(args=argv, prog_name=prog, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as exc:
        context = getattr(exc, "ctx", None)  # of the subcommand, whose own help says more
        say(prog, f"{exc.format_message()} (try {context.command_path if context else prog} --help)")
        return usage
    except (click.Abort, KeyboardInterrupt):
        say(prog, "interrupted")
        return 130
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has left: click catches EPIPE, and exits then alone.
        return 141
    except OSError as exc:
        say(prog, sentence(exc))
        debug_traceback()
        return failure(exc)
    except Exception as exc:
        say(prog, f"internal error: {type(exc).__name__}: {exc} (DAXFS_DEBUG=1 shows where)")
        debug_traceback()
        return failure(OSError(errno.EIO, str(exc)))
    finally:
        flush_or_drop()


def flush_or_drop() -> None:
    """Send what was printed; where that fails, also what is left of it goes nowhere.

    Python would try again at its end, complain, and make the exit status 120.
    """
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, fd)
            os.close(null)
            stream.flush()


def open_streams() -> None:
    """Descriptors 0 to 2 are open, and Python has its streams for them.

    Else the next file that is opened, which may be a source, gets the number that messages are written to.
    As glibc does it for set-id programs: what stands in for a closed one can't be used, and says EBADF; but
    messages that nobody wants are no error.
    """
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # gets that number, for those below it are open
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def debug_traceback() -> None:
    """The traceback of the exception at hand, for those who asked for it."""
    if os.environ.get("DAXFS_DEBUG") == "1":
        traceback.print_exc()


def say(prog: str, text: str) -> None:
    """One line on stderr; a closed stderr is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{prog}: {text}", file=sys.stderr, flush=True)


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``64M``, ``1.5 GiB``, ``1TB``: powers of 1024, however spelt. UsageError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"{text!r} is no size; write bytes, or 64M, 1G, 1T")
    number, unit = found[1], 1 << _UNITS[found[2].lower()]
    size = int(number) * unit if number.isdigit() else int(float(number) * unit)
    if not 0 < size < 1 << 63:
        raise UsageError(f"{text!r} is no size that a file can have")
    return size


def parse_uuid(text: str) -> bytes:
    """The 16 bytes of a UUID as people write it. UsageError."""
    try:
        return uuidlib.UUID(text).bytes
    except ValueError:
        raise UsageError(f"{text!r} is no UUID; like 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0") from None


def show_size(size: float) -> str:
    """Bytes for people: ``512 B``, ``1.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("not reached")


def show_time(ns: float) -> str:
    """Nanoseconds for people, three digits: ``850 ns``, ``12.3 µs``, ``1.2 s``."""
    for unit, scale in (("ns", 1), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)):
        value = ns / scale
        if value < 999.5 or unit == "s":
            return f"{value:.0f} {unit}" if value >= 100 or unit == "ns" else f"{value:.1f} {unit}"
    raise AssertionError("not reached")


def find_tool(name: str) -> str | None:
    """Path of a system's program; /sbin counts for users too."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + _ADMIN_PATH)


@contextlib.contextmanager
def progress(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A function(done, total) that draws a bar on stderr where that is a terminal, and else does nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def patiently(action, seconds: float = 3.0):
    """``action()``, tried again while it says EBUSY: after umount(8) a daemon still needs a moment to end."""
    until = time.monotonic() + seconds
    while True:
        try:
            return action()
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() >= until:
                raise
        time.sleep(0.05)
