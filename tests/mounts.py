# SPDX-License-Identifier: MIT
"""Real daxfs mounts for tests and benchmarks: made, remounted, killed and always cleaned up.

Everything goes through the installed commands (mkfs.daxfs, mount.daxfs,
fsck.daxfs, daxfs) beside ``sys.executable``, as a user would type them; this
module imports nothing of daxfs. Where a test says so (`starter`) those of
regions are forked from a process that has imported them (warm.py).
Not thread-safe: one thread makes and closes regions. It signals only processes
that it mounted itself, told apart from a reused pid by their start time.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import warm

MIB = 1 << 20
PREFIX = f"daxfs-test-{os.getpid()}-"
FS_TYPE = "fuse.daxfs"
TRANSPORTS = ("pyfuse3", "dev", "uring")
KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
ENABLE_URING = Path("/sys/module/fuse/parameters/enable_uring")
BAD_LOG_LINE = re.compile(r"\b(ERROR|CRITICAL)\b|^Traceback \(most recent call last\)|^\w+Error: ")

_numbers = itertools.count()
_live: list["MountedRegion"] = []
_log_complaints: list[str] = []
# What runs the commands of regions, without their start; None: they are run as a user would.
starter: warm.Starter | None = None


class CommandError(RuntimeError):
    """A command ended with another status than the caller demanded; the text holds its output."""


def command(name: str) -> str:
    """Path of an installed command beside this interpreter. CommandError where it is missing."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise CommandError(f"{path} is missing: build and install daxfs first (make build)")
    return str(path)


def run(args, timeout: float = 120, check: bool = True, by: warm.Starter | None = None,
        **kwargs) -> subprocess.CompletedProcess:
    """Run *args* with output in files, not pipes: a daemon that keeps stdout open can't hang the caller.

    *by* runs it if it can. CommandError on a time-out, and on a status other than 0 if *check*.
    """
    args = [str(arg) for arg in args]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            if by and by.takes(args):
                status = by.run(args, out, err, timeout)
            else:
                status = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                        timeout=timeout, check=False, **kwargs).returncode
        except subprocess.TimeoutExpired as exc:
            raise CommandError(f"{' '.join(args)}: no end after {timeout} s") from exc
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(args, status, out.read(), err.read())
    if check and status != 0:
        raise CommandError(f"{' '.join(args)}: status {status}\n{done.stdout}{done.stderr}")
    return done


def umount(path, timeout: float = 30) -> None:
    """umount *path*. Again while that is busy: who asks for the space of all mounts holds each shortly."""
    deadline = time.monotonic() + timeout
    while (done := run(["umount", path], check=False)).returncode:
        if "busy" not in done.stderr or time.monotonic() > deadline:
            raise CommandError(f"umount {path}: status {done.returncode}\n{done.stderr}")
        time.sleep(0.05)


def why_no_mounts() -> str | None:
    """The reason why this host or user can't make mounts, or None."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse: load the fuse module or pass the device into the container"
    if os.geteuid() != 0:
        return "not root: mounts need it (sudo)"
    return None


def switch_uring_on() -> bool:
    """Allow FUSE over io_uring where root may and it is off. True: it was off, to be written back."""
    try:
        if ENABLE_URING.read_text().strip() != "N":
            return False
        ENABLE_URING.write_text("Y")
    except OSError:
        return False
    return True


@functools.cache
def why_no_transport(name: str) -> str | None:
    """The reason why this host can't mount with ``transport=name``, or None; daxfs is not asked."""
    if name == "uring":
        try:
            enabled = ENABLE_URING.read_text().strip()
        except FileNotFoundError:
            return "no transport uring: this kernel's FUSE has no io_uring (6.14 has)"
        if enabled not in ("Y", "1"):
            return "no transport uring: echo Y > /sys/module/fuse/parameters/enable_uring"
        if not _io_uring_works():
            return "no transport uring: io_uring_setup fails here (sysctl kernel.io_uring_disabled, seccomp)"
    return None


def why_no_direct(transport: str) -> str | None:
    """The reason why this host maps no file directly by *transport*, or None; daxfs is not asked."""
    if KERNEL < (6, 9):
        return "no FUSE passthrough before kernel 6.9"
    return why_no_transport(transport)


def _io_uring_works() -> bool:
    """True if io_uring_setup(2) gives a ring."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(ctypes.c_long(425), ctypes.c_uint(1), ctypes.create_string_buffer(120))
    if fd < 0:
        return False
    os.close(fd)
    return True


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def mounts_of(path) -> list[str]:
    """File system types mounted at *path*, oldest first (empty: not a mount point)."""
    wanted = os.path.abspath(path)
    with open("/proc/self/mounts") as file:
        rows = [line.split() for line in file]
    return [row[2] for row in rows if _unescape(row[1]) == wanted]


def device_of(path) -> str:
    """MAJOR:MINOR of what is mounted at *path*. CommandError: nothing is."""
    wanted = os.path.abspath(path)
    with open("/proc/self/mountinfo") as file:
        rows = [line.split() for line in file]
    found = [row[2] for row in rows if _unescape(row[4]) == wanted]
    if not found:
        raise CommandError(f"{path}: not a mount point")
    return found[-1]


def left_mounts() -> list[str]:
    """Mount points of daxfs on our directories or of our sources that are still there."""
    with open("/proc/self/mounts") as file:
        rows = [line.split() for line in file]
    return [_unescape(row[1]) for row in rows
            if row[2] in (FS_TYPE, "daxfs", "tmpfs") and (PREFIX in row[0] or PREFIX in row[1])]


_FSXATTR = struct.Struct("<5I8x")  # struct fsxattr of linux/fs.h; its first word is the flags
_FSGETXATTR, _FSSETXATTR, _XFLAG_DAX = 0x801C581F, 0x401C5820, 0x8000


def set_dax(path, on: bool = True) -> None:
    """The DAX flag of a file or directory, as `chattr +x` and `xfs_io -c "chattr +x"` set it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flags, *others = _FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))
        flags = flags | _XFLAG_DAX if on else flags & ~_XFLAG_DAX
        fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(flags, *others))
    finally:
        os.close(fd)


def has_dax(path) -> bool:
    """Whether a file or directory has the DAX flag."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return bool(_FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))[0] & _XFLAG_DAX)
    finally:
        os.close(fd)


class Tmpfs:
    """A tmpfs of *size* bytes with huge=*huge* (None: as the kernel does), mounted at ``path``."""

    def __init__(self, size: int, huge: str | None = None):
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}tmpfs"))
        options = f"size={size}" + (f",huge={huge}" if huge else "")
        try:
            run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.path])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmount it, lazily where something of it is in use. May be called twice."""
        while mounts_of(self.path):
            if run(["umount", self.path], check=False).returncode != 0:
                run(["umount", "-l", self.path], check=False)
        with contextlib.suppress(FileNotFoundError):
            self.path.rmdir()

    def __enter__(self) -> "Tmpfs":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()


def start_time(pid: int) -> int | None:
    """Start time of a running process in clock ticks; None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class MountedRegion:
    """A region source of its own with a mount point of its own.

    *kind* is ``file`` (sparse file on /dev/shm), ``pool`` (pool directory
    there) or ``path`` with *source* given (never removed). *size* in bytes.
    *pool*: a pool directory in place of *kind*, on a tmpfs of its own with huge=*pool* ("never", "advise",
    "always", "within_size") and *room* bytes for region and ranges; the first mount gives the root directory
    the DAX flag, so that everything made in it has one. *mkfs* are further arguments of mkfs.daxfs,
    *options* the default mount options, *transport* is added to all options that name none. Made formatted;
    ``mount()`` mounts it. A context manager.
    """

    def __init__(self, size: int = 256 * MIB, kind: str = "file", source=None, mkfs=(), options: str = "",
                 transport: str | None = None, pool: str | None = None, room: int = 1024 * MIB):
        name = f"{PREFIX}{next(_numbers)}"
        base = Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
        self.size = size
        self.options = options
        self.transport = transport
        self.given = source is not None
        kind = "pool" if pool else kind
        ending = "pool" if kind == "pool" else "region"
        self.tmpfs = Tmpfs(size + room, pool) if pool else None
        base = self.tmpfs.path if self.tmpfs else base
        self.source = Path(source) if self.given else base / f"{name}.{ending}"
        self._root_wants_dax = bool(pool)
        self.path = Path(tempfile.gettempdir()) / f"{name}.mnt"
        self.log_file = Path(tempfile.gettempdir()) / f"{name}.log"
        self.pid: int | None = None
        self._started: int | None = None
        self._log_pos = 0
        self._expected: list[re.Pattern] = []
        self.closed = False
        _live.append(self)
        try:
            self.path.mkdir()
            if kind == "file" and not self.given:
                with open(self.source, "xb") as file:
                    file.truncate(size)
            self.mkfs(*mkfs, pool=kind == "pool")
        except BaseException:
            self.close()
            raise

    def mkfs(self, *args, pool: bool = False) -> subprocess.CompletedProcess:
        """Format the source, anew if it was formatted."""
        size = ["--size", str(self.size)] if pool else []
        source = f"{self.source}/" if pool else self.source
        return run([command("mkfs.daxfs"), "--force", *size, *args, source], by=starter)

    def mount(self, options: str | None = None, timeout: float = 60) -> "MountedRegion":
        """Mount with *options* (default: those given at construction) and learn the daemon's pid."""
        if options is not None:
            self.options = options
        if self._root_wants_dax:
            self._root_wants_dax = False
            self._flag_root()
        run(self.mount_command(), timeout=timeout, by=starter)
        if mounts_of(self.path) != [FS_TYPE]:
            raise CommandError(f"mount.daxfs returned, but {self.path} is {mounts_of(self.path)}")
        return self.adopt()

    def _flag_root(self) -> None:
        """Give the root directory the DAX flag, by a mount of its own: not every transport has ioctls."""
        asked, self.transport, options, self.options = self.transport, "dev", self.options, ""
        self.mount()
        set_dax(self.path)
        self.umount()
        self.transport, self.options = asked, options

    def adopt(self) -> "MountedRegion":
        """Learn the pid of the daemon behind the mount."""
        facts = self._ask({"get": "stat"})
        asked = re.search(r"\btransport=(\w+)", ",".join(self.mount_command()))
        if asked and asked[1] != "auto" and facts["transport"]["kind"] != asked[1]:
            raise CommandError(f"transport={asked[1]} was asked for, {facts['transport']} is used")
        self.pid = int(facts["pid"])
        self._started = start_time(self.pid)
        return self

    def mount_command(self) -> list[str]:
        """The command line that ``mount()`` runs."""
        parts = [self.options, f"log_file={self.log_file}"]
        if self.transport and "transport=" not in self.options:
            parts.append(f"transport={self.transport}")
        options = ",".join(filter(None, parts))
        return [command("mount.daxfs"), str(self.source), str(self.path), "-o", options]

    def stat(self) -> dict:
        """What ``daxfs stat --json`` says."""
        return json.loads(run([command("daxfs"), "stat", "--json", self.path], timeout=30).stdout)

    def _ask(self, request: dict) -> dict:
        """The daemon's answer to what a command would ask (daxfs/fuse/control.py). CommandError: none."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            try:
                sock.settimeout(30)
                with contextlib.suppress(OSError):
                    os.stat(self.path)  # waits until it serves; shut down it answers on its socket alone
                sock.connect(f"/run/daxfs/{device_of(self.path).replace(':', '-')}.sock")
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile("rb") as file:
                    reply = json.loads(file.readline())
            except (OSError, ValueError) as exc:
                raise CommandError(f"{self.path}: the daemon gives no answer: {exc}") from exc
        if "error" in reply:
            raise CommandError(f"{self.path}: the daemon answers: {reply['error']}")
        return reply

    def settled(self, seconds: float = 20) -> dict:
        """`daxfs stat`, once no file is open any more: RELEASE comes after close(2) has returned."""
        deadline = time.monotonic() + seconds
        while (facts := self.stat())["inodes"]["open"]:
            if time.monotonic() > deadline:
                raise CommandError(f"still open on {self.path} after {seconds} s: {facts['inodes']}")
            time.sleep(0.01)
        return facts

    def fsck(self, *args) -> subprocess.CompletedProcess:
        """Run fsck.daxfs on the source; the status is the caller's to judge."""
        return run([command("fsck.daxfs"), *args, self.source], check=False, by=starter)

    def daemon_alive(self) -> bool:
        """True while the daemon that ``mount()`` started runs."""
        return self.pid is not None and self._started is not None and start_time(self.pid) == self._started

    def _wait_gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.daemon_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        self.pid = self._started = None
        return True

    def umount(self, timeout: float = 30) -> None:
        """Unmount and wait until the daemon has let go of the source. Retries while it is busy."""
        if mounts_of(self.path):
            umount(self.path, timeout)
        if not self._wait_gone(timeout):
            raise CommandError(f"the daemon {self.pid} still runs {timeout} s after umount of {self.path}")

    def remount(self, options: str | None = None) -> "MountedRegion":
        """umount, then mount again: a fresh daemon that knows only what is on the media."""
        self.umount()
        return self.mount(options)

    def kill(self) -> None:
        """SIGKILL the daemon, wait until it is gone, detach the dead mount."""
        self._signal_daemon()
        self._detach()

    def _signal_daemon(self) -> None:
        if self.daemon_alive():
            # The start time was compared just now, so the pid is ours.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if not self._wait_gone(20):
            raise CommandError(f"the daemon {self.pid} survived SIGKILL for 20 s")

    def _detach(self) -> None:
        for _ in mounts_of(self.path):
            run(["umount", "-l", self.path], check=False)

    def kill_mount_in_progress(self, delay: float) -> bool:
        """Start mount.daxfs and SIGKILL it and its children after *delay* seconds.

        For a kill during replay. True if the mount was not yet answering then.
        """
        with tempfile.TemporaryFile() as sink:
            proc = subprocess.Popen(self.mount_command(), stdin=subprocess.DEVNULL, stdout=sink,
                                    stderr=sink, start_new_session=True)
            time.sleep(delay)
            early = proc.poll() is None
            # Again until none is left: one may fork between the look and the signal.
            deadline = time.monotonic() + 20
            while pids := self._mount_processes(proc):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if time.monotonic() > deadline:
                    raise CommandError(f"{pids} survived SIGKILL for 20 s")
                time.sleep(0.002)
            proc.wait()
        self._detach()
        return early

    def _mount_processes(self, leader: subprocess.Popen) -> list[int]:
        """Processes that carry our mount point as an argument, and *leader* while it lives.

        The daemon may have left the session of mount.daxfs, so its argument
        vector, which names a directory that only this object uses, tells it.
        """
        found = [leader.pid] if leader.poll() is None else []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid() or start_time(int(entry)) is None:
                continue
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(self.path) in argv and int(entry) not in found:
                    found.append(int(entry))
        return found

    def expect_log(self, pattern: str) -> None:
        """Lines that match *pattern* are no reason to fail the test."""
        self._expected.append(re.compile(pattern))

    def new_log_errors(self) -> list[str]:
        """Log lines of level ERROR or above, and tracebacks, since the last call."""
        try:
            with open(self.log_file, "rb") as file:
                file.seek(self._log_pos)
                text = file.read()
        except FileNotFoundError:
            return []
        self._log_pos += len(text)
        bad = [line for line in text.decode(errors="replace").splitlines() if BAD_LOG_LINE.search(line)]
        return [line for line in bad if not any(pattern.search(line) for pattern in self._expected)]

    def close(self) -> None:
        """Unmount (lazily and with SIGKILL if it must be) and remove what was made. May be called twice."""
        if self.closed:
            return
        self.closed = True
        _live.remove(self)
        try:
            self.umount()
        except CommandError as exc:
            _log_complaints.append(f"{self.path}: unclean end: {exc}")
            self._signal_daemon()
            self._detach()
        _log_complaints.extend(f"{self.log_file.name}: {line}" for line in self.new_log_errors())
        self.log_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        if not self.given and self.source.is_dir():
            shutil.rmtree(self.source, ignore_errors=True)
        elif not self.given:
            self.source.unlink(missing_ok=True)
        if self.tmpfs:
            self.tmpfs.close()

    def __enter__(self) -> "MountedRegion":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()


def take_complaints() -> list[str]:
    """Unexpected log lines and unclean ends of all regions, live and closed, since the last call."""
    found = _log_complaints[:]
    _log_complaints.clear()
    for region in _live:
        found.extend(f"{region.log_file.name}: {line}" for line in region.new_log_errors())
    return found


def close_all() -> None:
    """Close every region that is still open; also runs at interpreter exit."""
    for region in _live[:]:
        with contextlib.suppress(Exception):
            region.close()


def end_on_sigterm() -> None:
    """Make SIGTERM end this program as Control-C does, so that the clean-up above runs."""
    def interrupt(_signum, _frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupt)


atexit.register(close_all)
