# SPDX-License-Identifier: MIT
"""Which transports this host can do, why not the better ones, and what would change that.

`look` asks the host, `reasons` judges what it found, `choose` takes one: the last two are pure functions.
Limits: no pyfuse3, nothing is mounted. Whether the kernel does FUSE over io_uring for a mount is known for
certain in its INIT request alone (bit 41); `at_init` adds what was learnt there.
"""

import array
import ctypes
import errno
import fcntl
import importlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from daxfs.errors import UsageError

KINDS = ("uring", "dev", "pyfuse3")  # the best first
NATIVE = "daxfs.data._transport"
THREADS_AUTO = 8  # threads of dev where threads= is not given: one for each CPU, but no more than this

_IO_URING_SETUP = 425  # the same number on all machines but Alpha
# linux/io_uring.h: CQSIZE, SQE128, SINGLE_ISSUER, DEFER_TASKRUN. The newest came with 6.1.
_RING_FLAGS = 1 << 3 | 1 << 10 | 1 << 12 | 1 << 13
_PARAMS_SIZE, _PARAMS_CQ_ENTRIES, _PARAMS_FLAGS = 120, 4, 8
_FUSE_DEV_IOC_CLONE = 0x8004E500
_OVER_IO_URING = 1 << 41

_KEEP_MODULE = "; 'options fuse enable_uring=1' in a file of /etc/modprobe.d keeps it"
_KEEP_BUILTIN = "; fuse.enable_uring=1 on the kernel's command line keeps it"


class Reason(NamedTuple):
    """Why a transport can't be had, and what to change (empty: nothing helps here)."""

    why: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.why}: {self.todo}" if self.todo else self.why


@dataclass(frozen=True)
class Host:
    """What `look` found.

    native: the transports that this build of daxfs has. enable_uring: the fuse module's parameter, "" where
    there is no such parameter, None where the module or sysfs is not there. builtin: fuse is no module.
    io_uring_disabled: the sysctl, "" where there is none. ring: errno of io_uring_setup(2), 0: it works,
    None: not tried. device: /dev/fuse can be opened. clone: errno of cloning a mounted descriptor, None: not
    tried.
    """

    kernel: tuple[int, ...] = (0, 0)
    native: tuple[str, ...] = ()
    enable_uring: str | None = None
    builtin: bool = False
    io_uring_disabled: str = ""
    ring: int | None = None
    device: bool = False
    clone: int | None = None


def kernel_version(root: Path = Path("/")) -> tuple[int, ...]:
    """(6, 18) of the kernel below *root*."""
    text = _read(root / "proc/sys/kernel/osrelease") or platform.release()
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def look(have_device_fd: int | None = None, root: Path = Path("/")) -> Host:
    """The host, or a made-up one below *root*, of which only files are looked at.

    *have_device_fd*: a mounted /dev/fuse descriptor; cloning is tried on it.
    """
    here = root == Path("/")
    module = root / "sys/module/fuse"
    return Host(
        kernel=kernel_version(root),
        native=_native(),
        enable_uring=_read(module / "parameters/enable_uring") if module.is_dir() else None,
        builtin=module.is_dir() and not (module / "initstate").exists(),
        io_uring_disabled=_read(root / "proc/sys/kernel/io_uring_disabled"),
        ring=try_ring() if here else None,
        device=os.access(root / "dev/fuse", os.R_OK | os.W_OK),
        clone=None if have_device_fd is None else try_clone(have_device_fd),
    )


def probe(have_device_fd: int | None = None) -> dict[str, Reason | None]:
    """Transport -> why it can't be had on this host, None where it can."""
    return reasons(look(have_device_fd))


def reasons(host: Host) -> dict[str, Reason | None]:
    """What `probe` says of *host*; the best transport first."""
    found = {"uring": _no_uring(host), "dev": _no_dev(host), "pyfuse3": None}
    for kind in KINDS[:-1]:
        if kind not in host.native:
            found[kind] = Reason(f"this build of daxfs has no {kind} transport", "make build")
    return found


def for_mount(found: dict, flags: dict[str, bool]) -> dict:
    """*found*, and what mount options (MountConfig.flags) forbid."""
    if flags.get("allow_root") and not flags.get("allow_other"):
        why = Reason("allow_root is done by libfuse", "mount with allow_other, or without either")
        return {kind: found[kind] or why if kind != "pyfuse3" else None for kind in found}
    return found


def at_init(found: dict, offer: int) -> dict:
    """*found*, and what the 64 flags of the kernel's INIT request say."""
    if found["uring"] is None and not offer & _OVER_IO_URING:
        return found | {"uring": Reason("the kernel offers no FUSE over io_uring for this mount",
                                        "see /sys/module/fuse/parameters/enable_uring")}
    return found


def choose(wanted: str, found: dict[str, Reason | None]) -> tuple[str, str]:
    """(transport, why none that is better) for transport=*wanted*.

    UsageError where a transport was asked for by name that can't be had; it says what to change.
    """
    if wanted != "auto":
        if found[wanted] is not None:
            raise UsageError(f"transport={wanted} can't be had: {found[wanted]}")
        return wanted, "" if wanted == KINDS[0] else f"transport={wanted} was asked for"
    kind = next(kind for kind in KINDS if found[kind] is None)
    return kind, "; ".join(f"{better}: {found[better]}" for better in KINDS[: KINDS.index(kind)])


def thread_count(asked: int | None) -> int:
    """Threads of the dev transport: threads=, or one for each CPU that we may use, at most THREADS_AUTO."""
    return asked or max(1, min(len(os.sched_getaffinity(0)), THREADS_AUTO))


def _no_uring(host: Host) -> Reason | None:
    if host.enable_uring == "":
        if host.kernel < (6, 14):
            return Reason(f"kernel {_dotted(host.kernel)} has no FUSE over io_uring, it came with 6.14")
        return Reason("this kernel was built without CONFIG_FUSE_IO_URING")
    if host.enable_uring is None and host.kernel < (6, 14):
        return Reason(f"kernel {_dotted(host.kernel)} has no FUSE over io_uring, it came with 6.14")
    # None on a newer kernel: no sysfs to ask, or no module yet. The INIT request will tell.
    if host.enable_uring is not None and host.enable_uring not in ("Y", "1"):
        keep = _KEEP_BUILTIN if host.builtin else _KEEP_MODULE
        return Reason("FUSE over io_uring is switched off",
                      "echo Y > /sys/module/fuse/parameters/enable_uring" + keep)
    return _no_ring(host)


def _no_ring(host: Host) -> Reason | None:
    """What keeps us from a ring of our own."""
    if not host.ring:
        return None
    if host.ring == errno.EPERM and host.io_uring_disabled == "2":
        return Reason("io_uring is switched off", "sysctl kernel.io_uring_disabled=0")
    if host.ring == errno.EPERM and host.io_uring_disabled == "1":
        return Reason("io_uring is switched off for users without privilege",
                      "sysctl kernel.io_uring_disabled=0, or run as root or as a member of the group "
                      "that kernel.io_uring_group names")
    if host.ring in (errno.EPERM, errno.ENOSYS):
        return Reason(f"io_uring_setup(2): {os.strerror(host.ring)}, as in containers whose seccomp profile "
                      "forbids it", "a profile that allows io_uring, e.g. --security-opt seccomp=unconfined")
    if host.ring == errno.EINVAL:
        return Reason(f"the io_uring of kernel {_dotted(host.kernel)} lacks DEFER_TASKRUN, it came with 6.1")
    if host.ring == errno.ENOMEM:
        return Reason("io_uring_setup(2): no memory for a ring", "ulimit -l unlimited")
    return Reason(f"io_uring_setup(2): {os.strerror(host.ring)}")


def _no_dev(host: Host) -> Reason | None:
    if host.clone:
        return Reason(f"FUSE_DEV_IOC_CLONE on /dev/fuse: {os.strerror(host.clone)}")
    if host.clone is None and not host.device:
        return Reason("/dev/fuse can't be opened to read and write", "modprobe fuse, chmod a+rw /dev/fuse")
    return None


def try_ring() -> int:
    """0 where io_uring_setup(2) gives a ring as the transport wants it, else the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(_PARAMS_SIZE)
    ctypes.c_uint32.from_buffer(params, _PARAMS_CQ_ENTRIES).value = 8
    ctypes.c_uint32.from_buffer(params, _PARAMS_FLAGS).value = _RING_FLAGS
    fd = libc.syscall(ctypes.c_long(_IO_URING_SETUP), ctypes.c_uint(4), params)
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0


def try_clone(device: int) -> int:
    """0 where another descriptor of the connection of *device* can be had, else the errno."""
    try:
        other = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        return exc.errno
    try:
        fcntl.ioctl(other, _FUSE_DEV_IOC_CLONE, array.array("I", [device]))
    except OSError as exc:
        return exc.errno
    finally:
        os.close(other)
    return 0


def _native() -> tuple[str, ...]:
    """The transports that were compiled in (`KINDS` of the module)."""
    try:
        module = importlib.import_module(NATIVE)
    except ImportError:
        return ()
    return tuple(module.KINDS)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
