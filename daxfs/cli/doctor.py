# SPDX-License-Identifier: MIT
"""daxfs doctor: what this host can and can't do for daxfs, why that matters, and what to do.

Limits: looks, changes nothing. Each probe is a function that returns a Finding; all paths are under
``root`` so that tests can show it another host.
"""

import contextlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from daxfs import _flush, emulate
from daxfs._emulate import tsc_invariant
from daxfs.cli import common
from daxfs.cli.stat_tables import console
from daxfs.fuse import control, mountinfo, transports
from daxfs.fuse.passthrough import SINCE

CAP_SYS_ADMIN = 21
# What mount.daxfs negotiates as root beyond libfuse, and the kernel that it came with.
INIT_FEATURES = {"dont_mask": (2, 6), "handle_killpriv_v2": (5, 11), "direct_io_allow_mmap": (6, 6)}


@dataclass
class Finding:
    """ok: True, False (daxfs does not work without it), or None (works, but with less)."""

    name: str
    ok: bool | None
    value: str
    why: str
    todo: str = ""


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def fuse_device(root: Path) -> Finding:
    path = root / "dev/fuse"
    why = "the kernel hands requests over through it"
    if not path.exists():
        return Finding("/dev/fuse", False, "missing", why,
                       "modprobe fuse; a container needs --device /dev/fuse --cap-add SYS_ADMIN")
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding("/dev/fuse", False, "not readable and writable for you", why, f"chmod a+rw {path}")
    return Finding("/dev/fuse", True, "there", why)


def fusermount(root: Path) -> Finding:
    found = common.find_tool("fusermount3")
    if os.geteuid() == 0:
        return Finding("fusermount3", True if found else None, found or "missing",
                       "mounting by others than root, and auto_unmount", "" if found else "apt install fuse3")
    return Finding("fusermount3", bool(found), found or "missing", "mounts for users other than root",
                   "" if found else "apt install fuse3")


def admin(root: Path) -> Finding:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _read(root / "proc/self/status"), re.MULTILINE)
    capable = bool(found and int(found[1], 16) >> CAP_SYS_ADMIN & 1)
    return Finding("CAP_SYS_ADMIN", True if capable else None, "yes" if capable else "no",
                   "mounting without fusermount3, quickstart's own tmpfs with huge pages",
                   "" if capable else "run as root, or use fusermount3 and /dev/shm")


def kernel(root: Path) -> Finding:
    text = _read(root / "proc/sys/kernel/osrelease") or platform.release()
    good = transports.kernel_version(root) >= (5, 4)
    return Finding("kernel", good, text, "FUSE as libfuse 3.14 and later expects it",
                   "" if good else "5.4 or later is needed")


def passthrough(root: Path) -> Finding:
    version = transports.kernel_version(root)
    since, why = ".".join(map(str, SINCE)), "the kernel maps a file of the pool directory in place of ours"
    if version < SINCE:
        todo = f"a kernel from {since} on"
        return Finding("FUSE passthrough", None, f"no, it came with {since}", why, todo)
    have = f"kernel {'.'.join(map(str, version))} has it"
    if not admin(root).ok:
        return Finding("FUSE passthrough", None, f"{have}, for CAP_SYS_ADMIN alone", why, "mount as root")
    return Finding("FUSE passthrough", True, have, why)


def leases(root: Path) -> Finding:
    """F_SETLEASE, by which daxfs finds out whether somebody has a range open or mapped."""
    name, why = "file leases", "chattr -x moves data out of their range once nobody has it mapped"
    text = _read(root / "proc/sys/fs/leases-enable")
    if text == "1":
        return Finding(name, True, "enabled", why)
    return Finding(name, None, "switched off" if text else "not in this kernel", why,
                   "sysctl fs.leases-enable=1" if text else "")


def fault_records(root: Path) -> Finding:
    """perf_event_open, by which a client's msync knows without a scan of all which pages were stored to."""
    name, why = "page fault records", "msync of a large observed mapping looks at what was stored to alone"
    text = _read(root / "proc/sys/kernel/perf_event_paranoid")
    if not text:
        return Finding(name, None, "not in this kernel", why)
    if int(text) < 2 or admin(root).ok:
        return Finding(name, True, "for all page faults", why)
    if int(text) == 2:
        return Finding(name, None, "without those of system calls: after one all is looked at once", why,
                       "sysctl kernel.perf_event_paranoid=1, or CAP_PERFMON")
    return Finding(name, None, f"not for you (kernel.perf_event_paranoid={text})", why,
                   "sysctl kernel.perf_event_paranoid=2, or 1")


def pools(root: Path) -> Finding:
    """File systems on which a pool directory can have files with ranges of their own, the best first."""
    why = "a region in a pool directory, whose DAX files are mapped directly; not overlayfs, not hugetlbfs"
    found = []
    for mount in mountinfo.mounts(str(root / "proc/self/mountinfo")):
        words = mount.super_options + mount.options
        system = re.match("/(sys|proc|dev)(/|$)", mount.mountpoint) and mount.mountpoint != "/dev/shm"
        if mount.fstype not in ("tmpfs", "ext4", "xfs") or "ro" in words or system:
            continue
        dax = next((word for word in words if re.fullmatch("dax(=always|=inode)?", word)), "")
        huge = next((word for word in words if re.fullmatch("huge=(within_size|always)", word)), "")
        rank = 0 if dax else 1 if huge else 2 if mount.fstype == "tmpfs" else 3
        note = "disk" if rank == 3 else dax or huge or "pages of 4 KiB"
        found.append((rank, f"{mount.mountpoint} ({mount.fstype}, {note})"))
    best = [text for _, text in sorted(dict.fromkeys(found))]
    if not best:
        return Finding("pool directories", None, "no tmpfs, ext4 or XFS", why, "mount -t tmpfs tmpfs DIR")
    more = f" and {len(best) - 4} more" if len(best) > 4 else ""
    todo = "" if min(found)[0] < 2 else "mount -t tmpfs -o huge=within_size tmpfs DIR: mappings of 2 MiB"
    return Finding("pool directories", True, ", ".join(best[:4]) + more, why, todo)


def direct(root: Path) -> Finding:
    """What direct mappings need, together: what is missing, and how to have one where nothing is."""
    why = "a program's mmap reaches the region's own pages, at the speed of the memory"
    missing = [one.todo for one in (passthrough(root),) if not one.ok]
    reasons = transports.reasons(transports.look(root=root))
    if all(reasons[kind] is not None for kind in _TRANSPORTS):
        missing.append(f"a native transport ({reasons['dev'].todo or reasons['dev'].why})")
    if pools(root).ok is None:
        missing.append("a file system for a pool directory")
    if missing:
        return Finding("direct mappings", None, "can't be had", why, "; ".join(missing))
    how = "mkfs.daxfs --size 1G DIR/, mount it, and chattr +x a file or directory (or mount with dax=always)"
    return Finding("direct mappings", True, f"can be had: {how}", why)


def fuse_init(root: Path) -> Finding:
    """What a daxfs mount of this host agreed on with the kernel; without one, what its version has."""
    name = "FUSE INIT features"
    why = "default ACLs without umask, shared mmap of O_DIRECT descriptors, one request for a buffered write"
    for mount in mountinfo.mounts(str(root / "proc/self/mountinfo")):
        if mount.fstype in mountinfo.TYPES:
            with contextlib.suppress(OSError):
                facts = control.ask_mount(mount, {"get": "info"}, timeout=2)
                if facts["init"]:
                    return Finding(name, True, f"{mount.mountpoint}: {' '.join(facts['init'])}", why)
                value = f"{mount.mountpoint}: mounted by {facts['mounted_by']}"
                return Finding(name, None, value, why, "mount as root")
    version = transports.kernel_version(root)
    have = [name for name, since in INIT_FEATURES.items() if version >= since]
    whole = len(have) == len(INIT_FEATURES)
    value = f"nothing is mounted; kernel {'.'.join(map(str, version))} has {' '.join(have)}"
    return Finding(name, True if whole else None, value, why)


_TRANSPORTS = {
    "uring": "requests answered natively on the CPU that made them; transport=auto takes it first",
    "dev": "requests answered natively by threads that read /dev/fuse; transport=auto takes it next",
}


def transport_rows(root: Path) -> list[Finding]:
    """The native transports; transport=pyfuse3 works wherever FUSE does."""
    host = transports.look(root=root)
    out = []
    for kind, why in _TRANSPORTS.items():
        reason = transports.reasons(host)[kind]
        name = f"transport={kind}"
        if reason is not None:
            out.append(Finding(name, None, reason.why, why, reason.todo))
        elif kind == "uring" and host.enable_uring is None:
            out.append(Finding(name, None, "not known before fuse is loaded", why, "modprobe fuse"))
        else:
            out.append(Finding(name, True, "works", why))
    return out


def cpu(root: Path) -> Finding:
    have = _flush.available()
    line = [kind for kind in have["flush"] if kind in ("clwb", "clflushopt", "clflush")]
    value = f"flush: {' '.join(line) or 'none'}; non-temporal: {' '.join(have['nt'])}"
    if not line:
        return Finding("CPU", None, value, "stores reach real pmem only if lines can be written back",
                       "on this CPU only emulated regions and granularity=page make sense")
    slow = "clwb" not in line and "clflushopt" not in line
    return Finding("CPU", None if slow else True, value,
                   "clwb and clflushopt run in parallel, clflush one by one")


def emulated_media(root: Path) -> Finding:
    name, why = "emulated media", "mount -o emulate=pmem1 costs what a slower memory costs"
    media = ", ".join(emulate.known())
    if tsc_invariant():
        return Finding(name, True, f"{media}: an invariant TSC makes the delays", why)
    return Finding(name, None, f"{media}: without an invariant TSC the delays are made with CLOCK_MONOTONIC",
                   why, "delays are coarser; each mount says how exact they are")


def tmpfs_huge(root: Path) -> Finding:
    why = "2 MiB mappings of emulated regions: 512 times fewer faults"
    text = _read(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled")
    found = re.search(r"\[(\w+)\]", text)
    if not found:
        return Finding("tmpfs huge pages", None, "not in this kernel", why)
    if found[1] == "deny":
        return Finding("tmpfs huge pages", None, "denied for all tmpfs", why,
                       "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled (each mount decides)")
    huge = [m.mountpoint for m in mountinfo.mounts(str(root / "proc/self/mountinfo")) if m.fstype == "tmpfs"
            and any(re.fullmatch("huge=(always|advise|within_size)", o) for o in m.super_options)]
    if found[1] == "force" or huge:
        return Finding("tmpfs huge pages", True, ", ".join(huge) or "forced for all tmpfs", why)
    return Finding("tmpfs huge pages", None, "no tmpfs is mounted with them", why,
                   "mount -t tmpfs -o huge=within_size tmpfs DIR, or daxfs quickstart")


def map_sync(root: Path) -> Finding:
    why = "real pmem below a pool directory: ext4 or XFS mounted with dax"
    found = [m.mountpoint for m in mountinfo.mounts(str(root / "proc/self/mountinfo"))
             if m.fstype in ("ext4", "xfs", "ext2")
             and any(re.fullmatch("dax(=always|=inode)?", o) for o in m.super_options + m.options)]
    if found:
        return Finding("fsdax mounts", True, ", ".join(found), why)
    return Finding("fsdax mounts", None, "none", why, "mount -o dax /dev/pmemN DIR, where there is pmem")


def pmem(root: Path) -> Finding:
    blocks = sorted(p.name for p in (root / "sys/block").glob("pmem*"))
    dax = sorted(p.name for p in (root / "sys/bus/dax/devices").glob("dax*"))
    why = "memory that keeps its content without power, or CXL memory"
    if blocks or dax:
        return Finding("pmem, devdax", True, ", ".join(f"/dev/{name}" for name in blocks + dax), why)
    return Finding("pmem, devdax", None, "no device", why,
                   "regions are emulated here: not power-fail safe (the boot parameter memmap=2G!4G makes a "
                   "device of ordinary memory)")


def hugetlb(root: Path) -> Finding:
    why = "a source file on hugetlbfs has 2 MiB pages for certain; a pool directory there has no own ranges"
    free = _read(root / "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if free and int(free):
        return Finding("hugetlb pages", True, f"{free} of 2 MiB free", why)
    return Finding("hugetlb pages", None, "none of 2 MiB free" if free else "not in this kernel", why,
                   "sysctl vm.nr_hugepages=N" if free else "")


def allow_other(root: Path) -> Finding:
    why = "-o allow_other for users other than root"
    if re.search(r"^\s*user_allow_other\b", _read(root / "etc/fuse.conf"), re.MULTILINE):
        return Finding("user_allow_other", True, "in /etc/fuse.conf", why)
    return Finding("user_allow_other", None, "not in /etc/fuse.conf", why,
                   "echo user_allow_other >> /etc/fuse.conf")


def _tool(name: str, package: str, why: str) -> Finding:
    found = common.find_tool(name)
    todo = "" if found else f"apt install {package}"
    return Finding(name, True if found else None, found or "missing", why, todo)


def tools(root: Path) -> list[Finding]:
    return [_tool("fio", "fio", "quickstart's job, the tests and benchmarks"),
            _tool("xfs_io", "xfsprogs", "quickstart's job and the tests"),
            _tool("blkid", "util-linux", "mkfs.daxfs refuses to overwrite what blkid knows")]


PROBES = (kernel, fuse_device, fusermount, admin, allow_other, passthrough, fuse_init, transport_rows, cpu,
          emulated_media, direct, pools, leases, fault_records, tmpfs_huge, hugetlb, map_sync, pmem, tools)


def examine(root: str = "/") -> list[Finding]:
    """All findings; a probe that fails is a finding too."""
    out: list[Finding] = []
    for probe in PROBES:
        try:
            found = probe(Path(root))
        except (OSError, ValueError) as exc:
            found = Finding(probe.__name__, None, f"can't be found out: {exc}", "")
        out += found if isinstance(found, list) else [found]
    return out


def render(findings: list[Finding]) -> Table:
    """One row each: mark, name, then what was found, why it matters and what to do."""
    marks = {True: Text("ok", "green"), None: Text("-", "yellow"), False: Text("NO", "bold red")}
    table = Table.grid(padding=(0, 2))
    table.add_column(width=2)
    table.add_column(no_wrap=True)
    table.add_column()
    for one in findings:
        text = Text(one.value)
        text.append(f"\n{one.why}" if one.why else "", "dim")
        if one.todo:
            text.append(f"\n-> {one.todo}")
        table.add_row(marks[one.ok], Text(one.name, "bold"), text)
    return table


@click.command("doctor", short_help="What this host can and can't do.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object with a list of findings.")
def command(as_json):
    """What this host can and can't do, why it matters, and what to do. Exit
    status 1 if daxfs does not work here.
    """
    findings = examine()
    works = all(one.ok is not False for one in findings)
    if as_json:
        click.echo(json.dumps({"works": works, "findings": [asdict(one) for one in findings]}))
        return 0 if works else 1
    out = console()
    out.print(render(findings))
    out.print()
    out.print("daxfs works on this host; - marks what would make it faster or safer." if works
              else "daxfs does not work on this host: see the lines marked NO.")
    return 0 if works else 1
