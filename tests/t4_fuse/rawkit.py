# SPDX-License-Identifier: MIT
"""Raw mounts for tests (`daxfs raw`), and what their files are asked for."""

import array
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import mounts

BLKDAXSET, BLKDAXGET, ENOTTY = 0x1280, 0x1281, 25
NOBODY = 65534


class RawRegion(mounts.MountedRegion):
    """A source with no file system on it, mounted by `daxfs raw`; ``file`` is its first raw file."""

    def mkfs(self, *_args, pool=False) -> None:
        """What the source holds nobody looks at."""
        if pool:
            self.source.mkdir()
            (self.source / "region").touch()
            os.truncate(self.source / "region", self.size)

    def mount_command(self) -> list[str]:
        _, source, path, *rest = super().mount_command()
        return [mounts.command("daxfs"), "raw", source, path, *rest]

    @property
    def file(self) -> Path:
        return self.path / "0"


def code(call, *args) -> int:
    """The errno of ``call(*args)``, 0 where it succeeds."""
    try:
        result = call(*args)
        if call is os.open:
            os.close(result)
    except OSError as error:
        return error.errno
    return 0


def get(fd: int) -> int:
    """BLKDAXGET."""
    value = array.array("i", [-7])
    fcntl.ioctl(fd, BLKDAXGET, value, True)
    return value[0]


def set_to(fd: int, value: int) -> int:
    """BLKDAXSET: 0 or its errno."""
    return code(fcntl.ioctl, fd, BLKDAXSET, array.array("i", [value]))


# mmap(2) itself: Python's mmap would keep a descriptor of its own.
MAPPER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
assert address not in (None, ctypes.c_void_p(-1).value), ctypes.get_errno()
m = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
os.close(fd)
for line in sys.stdin:
    word, at, text = line.split()
    at = int(at)
    if word == "store":
        m[at:at + len(text)] = text.encode()
        print("ok", flush=True)
    else:
        print(bytes(m[at:at + int(text)]).decode(), flush=True)
"""


class Mapper:
    """Another process that has *path* mapped as a whole, and no descriptor of it. A context manager."""

    def __init__(self, path):
        self.process = subprocess.Popen([sys.executable, "-P", "-c", MAPPER, str(path)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load(0, 0)

    def _ask(self, text: str) -> str:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def store(self, at: int, text: str) -> None:
        assert self._ask(f"store {at} {text}") == "ok"

    def load(self, at: int, size: int) -> str:
        return self._ask(f"load {at} {size}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "Mapper":
        return self

    def __exit__(self, *_exc) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def as_nobody(call) -> int:
    """What ``call()`` returns, an int below 200, in a child that is nobody; 200: it raised something."""
    pid = os.fork()
    if pid == 0:
        status = 200
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = call()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)

