# SPDX-License-Identifier: MIT
"""Installed commands without their start: forked from one process that has imported what they import.

A mount of a test takes mkfs.daxfs, mount.daxfs and its daemon, three interpreters that import numpy, trio
and daxfs: 0.4 s of CPU time, mostly more than the test. `Starter` has one process, this file run as a
program, import all that once. It forks a child for each command, which has the arguments, working directory,
stdin, stdout and stderr that a new process would have, runs the function of the same entry point, and ends as
an interpreter ends. What differs from a start: the imports, the seed of hashes, the command line in /proc.
Whoever tests those, or the start itself (COLD_STARTS), starts commands. So must who is not as the
`Starter`'s maker was (`_surroundings`): `Starter.takes` says no. Limits: imports nothing of daxfs but in that
process. tests/t4_fuse/test_warm.py compares.
"""

import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading

ENTRIES = {"mkfs.daxfs": "daxfs.cli.mkfs", "mount.daxfs": "daxfs.cli.mount", "fsck.daxfs": "daxfs.cli.fsck"}
# What only the serving process imports, and numpy.
SERVING = ("daxfs.fuse.session", "daxfs.fuse.fs_session", "daxfs.meta.mkfs")
BLAS = "OPENBLAS_NUM_THREADS"  # a process that forks has no threads
LIMITS = sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})


def _surroundings() -> tuple:
    """What a child has of its parent; pytest names the running test in the environment."""
    os.umask(umask := os.umask(0o077))
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return (os.getpid(), environment, umask, os.sched_getaffinity(0), os.readlink("/proc/self/ns/mnt"),
            os.geteuid(), [resource.getrlimit(number) for number in LIMITS])


class Starter:
    """Runs commands of `ENTRIES`, one at a time, for a caller who is as when this object was made."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._surroundings = _surroundings()
        self._lock = threading.Lock()

    def takes(self, args) -> bool:
        """Whether `run` runs *args* as a new process would."""
        return os.path.basename(args[0]) in ENTRIES and _surroundings() == self._surroundings

    def run(self, args: list[str], stdout, stderr, timeout: float) -> int:
        """The status of *args*, stdin is empty. subprocess.TimeoutExpired, with the command killed."""
        with self._lock:
            if self._process is None:
                self._make()
            request = json.dumps({"argv": args, "cwd": os.getcwd()}).encode()
            socket.send_fds(self._socket, [request], [stdout.fileno(), stderr.fileno()])
            _, (child,), *_ = socket.recv_fds(self._socket, 64, 1)
            try:
                self._socket.settimeout(timeout)
                return int(self._socket.recv(64))
            except TimeoutError:
                signal.pidfd_send_signal(child, signal.SIGKILL)
                self._socket.settimeout(None)
                self._socket.recv(64)
                raise subprocess.TimeoutExpired(args, timeout) from None
            finally:
                self._socket.settimeout(None)
                os.close(child)

    def _make(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def close(self) -> None:
        """End the process. May be called twice."""
        if self._process:
            self._socket.close()
            self._process.wait(20)
            self._process = None


def _serve(channel: socket.socket) -> list[str]:
    """Fork for each request. Returns in the children alone, with what they are to run."""
    while True:
        request, fds, *_ = socket.recv_fds(channel, 1 << 16, 2)
        if not request:
            sys.exit()  # whoever asked is gone
        pid = os.fork()
        if pid == 0:
            return _become(json.loads(request), fds)
        child = os.pidfd_open(pid)
        socket.send_fds(channel, [b"begun"], [child])
        for fd in (child, *fds):
            os.close(fd)
        channel.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(wanted: dict, fds: list[int]) -> list[str]:
    """Have what a new process would have, and no other descriptors."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(wanted["cwd"])
    for fd, own in enumerate([os.open(os.devnull, os.O_RDONLY), *fds]):
        os.dup2(own, fd)
    os.closerange(3, 256)
    return wanted["argv"]


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is for the one who asks
    channel = socket.socket(fileno=int(sys.argv[1]))
    had = os.environ.get(BLAS)
    os.environ[BLAS] = "1"
    for name in (*ENTRIES.values(), *SERVING):
        importlib.import_module(name)
    del os.environ[BLAS]
    if had is not None:
        os.environ[BLAS] = had
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads after the imports: none of them would be in a child"
    gc.freeze()
    sys.argv = _serve(channel)
    channel.detach()  # closed in the child
    return importlib.import_module(ENTRIES[os.path.basename(sys.argv[0])]).main()


if __name__ == "__main__":
    sys.exit(main())
