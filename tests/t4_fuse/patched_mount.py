# SPDX-License-Identifier: MIT
"""A mount.daxfs with something replaced or forbidden: ``patched_mount.py WHAT ARGUMENT... -- ARGUMENTS``."""

import ctypes
import errno
import os
import resource
import struct
import sys
import time

from daxfs.fuse import parking, session
from daxfs.meta.fs import FileSystem

CLONE = {"x86_64": 56, "aarch64": 220}
# The same numbers on all machines but Alpha.
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER, CLONE3 = 425, 426, 427, 435
SECCOMP = {"x86_64": 317, "aarch64": 277}


def on_statfs(action) -> None:
    """Have STATFS call *action()* before it is answered, in the trio loop's thread."""
    plain = FileSystem.statfs

    def statfs(self):
        action()
        return plain(self)

    FileSystem.statfs = statfs


def hold(path: str) -> None:
    """STATFS stops the trio loop as long as *path* is there."""

    def action():
        while os.path.exists(path):
            time.sleep(0.005)

    on_statfs(action)


def park_for(seconds: str) -> None:
    """What is parked goes by time after so long."""
    parking.PARKED_FOR = float(seconds)


def refuse(code: int, *numbers: int) -> None:
    """System calls *numbers* fail with *code* from now on, in all threads of this process (seccomp)."""
    lines = [(0x20, 0, 0, 0)]  # load the number
    # Equal: to the last line.
    lines += [(0x15, len(numbers) - n, 0, number) for n, number in enumerate(numbers)]
    lines += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | code)]  # allow; errno
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("<H6xQ", len(lines), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    set_mode_filter, all_threads = 1, 1
    if libc.syscall(ctypes.c_long(SECCOMP[os.uname().machine]), ctypes.c_uint(set_mode_filter),
                    ctypes.c_uint(all_threads), program):
        raise OSError(ctypes.get_errno(), "seccomp")


def before_the_threads(action) -> None:
    """Call *action()* when the transport is going to start: what it needs was probed by then."""
    plain = session.Session._start_native

    def start(self):
        action()
        return plain(self)

    session.Session._start_native = start


def lose_queues(path: str) -> None:
    """From a STATFS on that finds *path*, io_uring_enter(2) fails."""
    on_statfs(lambda: refuse(errno.EIO, IO_URING_ENTER) if os.path.exists(path) else None)


def lose_device(path: str) -> None:
    """From a STATFS on that finds *path*, the queues hand their replies in to what is no /dev/fuse."""
    mounted = []
    plain = session.Session._start_native

    def start(self):
        mounted.append(self.link)
        refuse(errno.EPERM, IO_URING_REGISTER)  # or they had a reference of their own
        return plain(self)

    session.Session._start_native = start
    on_statfs(lambda: os.dup2(os.eventfd(0), mounted[0].fuse) if os.path.exists(path) else None)


def no_threads() -> None:
    before_the_threads(lambda: refuse(errno.EAGAIN, CLONE3, CLONE[os.uname().machine]))


def no_rings() -> None:
    before_the_threads(lambda: refuse(errno.ENOMEM, IO_URING_SETUP))


def no_enter() -> None:
    before_the_threads(lambda: refuse(errno.EINVAL, IO_URING_ENTER))


def few_descriptors(left: str) -> None:
    """The transport finds *left* descriptors free."""

    def action():
        free = [os.dup(0) for _ in range(int(left))]
        for fd in free:
            os.close(fd)
        # Those below the highest that is in use now are free too, and were dup's first choice.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(free, default=_highest()) + 1,) * 2)

    before_the_threads(action)


def _highest() -> int:
    """A limit that leaves none: the lowest number that is free."""
    fd = os.dup(0)
    os.close(fd)
    return fd - 1


def small_payload() -> None:
    """Payloads that are too small for the kernel, which refuses to register them."""
    plain = session.Transport
    session.Transport = lambda *args: plain(*args[:4], 4096, *args[5:])


if __name__ == "__main__":
    split = sys.argv.index("--")
    globals()[sys.argv[1]](*sys.argv[2:split])
    sys.argv[1:] = sys.argv[split + 1 :]
    from daxfs.cli.mount import main

    sys.exit(main())
