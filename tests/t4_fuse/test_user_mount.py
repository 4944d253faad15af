# SPDX-License-Identifier: MIT
"""A user without privilege mounts, through fusermount3, by each transport.

In a name space of its own, where /dev/fuse is open to all as it is on most hosts, and where the interpreter
can be reached even if it stands in root's home.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports]
NOBODY = 65534


def closed_parents(paths) -> dict[Path, list[Path]]:
    """Directory that others may not pass -> the paths below it that they need."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & 0o001:
                found.setdefault(parent, []).append(path)
                break
    return found


def set_up(scratch: Path) -> list[str]:
    """Shell commands for the name space: the device, and ways to the interpreter and its packages."""
    lines = ["set -e", f"mknod {scratch}/fuse c 10 229", f"chmod 666 {scratch}/fuse",
             f"mount --bind {scratch}/fuse /dev/fuse"]
    needed = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    for n, (parent, paths) in enumerate(closed_parents(needed).items()):
        for m, path in enumerate(paths):
            aside = f"{scratch}/aside{n}.{m}"
            lines += [f"mkdir {aside}", f"mount --bind {shlex.quote(str(path))} {aside}"]
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(parent))}")
        for m, path in enumerate(paths):
            lines += [f"mkdir -p {shlex.quote(str(path))}",
                      f"mount --bind {scratch}/aside{n}.{m} {shlex.quote(str(path))}"]
    return lines


@pytest.fixture
def as_user(tmp_path_factory):
    """Call it with a shell script: its output, run by nobody in a name space of its own."""
    scratch = Path(f"/tmp/{mounts.PREFIX}user")
    scratch.mkdir(mode=0o755)
    source = Path(f"/dev/shm/{mounts.PREFIX}user.region")

    def run(script: str) -> str:
        source.touch()
        os.truncate(source, 64 << 20)
        os.chown(source, NOBODY, NOBODY)
        own = scratch / "own"
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
        bin_ = Path(sys.executable).parent
        path = f"{bin_}:/usr/sbin:/usr/bin:/sbin:/bin"
        (scratch / "script").write_text(f"set -e\nexport PATH={path} HOME={own}\ncd {own}\nmkdir mnt\n"
                                        f"SOURCE={source}\n{script}")
        user = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups sh {scratch}/script"
        (scratch / "outer").write_text("\n".join([*set_up(scratch), user]))
        done = mounts.run(["unshare", "-m", "--propagation", "private", "sh", scratch / "outer"], timeout=60)
        return done.stdout

    yield run
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == NOBODY and os.fsencode(source) in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    shutil.rmtree(scratch)
    source.unlink(missing_ok=True)


@pytest.mark.parametrize("more", ["", ",auto_unmount", ",noatime"])
def test_nobody_mounts_writes_and_unmounts(as_user, transport, more):
    out = as_user(f"""
        mkfs.daxfs $SOURCE > /dev/null
        mount.daxfs $SOURCE mnt -o transport={transport}{more}
        echo content > mnt/file
        cat mnt/file
        daxfs stat --json mnt > stat
        fusermount3 -u mnt
        for i in 1 2 3 4 5 6 7 8 9 10; do fsck.daxfs -n $SOURCE > /dev/null 2>&1 && break; sleep 0.3; done
        fsck.daxfs -n $SOURCE
        cat stat
    """)
    first, stat = out.partition("\n")[0], json.loads(out[out.index("{"):])
    assert first == "content"
    assert stat["transport"]["kind"] == transport
    assert stat["mounted_by"] == "fusermount3"
    assert "direct_io_allow_mmap" in stat["init"] and "passthrough" not in stat["init"]
    why = stat["direct"]["why_not"]
    wanted = ("mount with transport=",) if transport == "pyfuse3" else ("mount as root", "6.9")
    assert any(words in why for words in wanted)


def test_what_fusermount_refuses_is_said_in_its_words(as_user, transport):
    out = as_user(f"""
        mkfs.daxfs $SOURCE > /dev/null
        status=0
        mount.daxfs $SOURCE /usr -o transport={transport} 2>&1 || status=$?
        echo status $status
    """)
    assert "fusermount3: " in out and "/usr" in out and out.endswith("status 1\n")
