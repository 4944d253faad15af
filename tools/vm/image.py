# SPDX-License-Identifier: MIT
"""What the guest starts from: Debian's kernel, a small initramfs, its disk, and a disk of this checkout.

The disk is built from Debian packages and PyPI once and kept until what it is made of changes; the checkout's
disk is made for each run. Needs root and mmdebstrap. Limits: nothing is mounted on this host's mount table
(the chroot has a name space of its own, which ends with it), and what is half built is never used.
"""

import functools
import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    "acl", "attr", "busybox-static", "ca-certificates", "daxctl", "e2fsprogs", "fio", "fuse3", "gcc", "kmod",
    "libc6-dev", "libfuse3-dev", "libpmem-dev", "liburing-dev", "linux-image-amd64", "ndctl", "pkg-config",
    "procps", "python3", "python3-dev", "python3-venv", "sqlite3", "util-linux", "xfsprogs",
)  # fmt: skip
VENV = "/opt/daxfs"
COMMANDS = ("daxfs", "mkfs.daxfs", "fsck.daxfs", "mount.daxfs")
# What it takes to reach the disks; virtio_pci is in the kernel.
EARLY_MODULES = ("virtio_blk", "crc32c_generic", "ext4")
CHECKOUT = "/checkout"  # where the guest mounts this checkout's disk
_MIB = 1 << 20

INIT = f"""#!/bin/busybox sh
# Reaches the two disks and hands over to the checkout's own init.
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module; done
/bin/busybox mount -t ext4 /dev/vda /root && /bin/busybox mount -t ext4 -o ro /dev/vdb /root{CHECKOUT} &&
    /bin/busybox mount --move /dev /root/dev &&
    exec /bin/busybox switch_root /root {CHECKOUT}/tests/guest/init.sh
echo "initramfs: no way to the disks"
/bin/busybox poweroff -f
"""


class BuildError(RuntimeError):
    """A step of the building failed; the text holds the end of what it said."""


@dataclass(frozen=True)
class Image:
    """What QEMU is given: the kernel, the initramfs, and the disk that no run changes."""

    kernel: Path
    initrd: Path
    disk: Path


def _run(args, log: Path, **kwargs) -> None:
    with open(log, "ab") as out:
        done = subprocess.run(["nice", "-n", "10", *map(str, args)], stdin=subprocess.DEVNULL, stdout=out,
                              stderr=out, check=False, **kwargs)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BuildError(f"{' '.join(map(str, args))}: status {done.returncode}; end of {log}:\n{tail}")


def _in_chroot(root: Path, args, log: Path) -> None:
    """Run *args* in the chroot, with a /proc that goes away with it."""
    clean = {"PATH": f"{VENV}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8",
             "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    _run(["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root / 'proc'}",
          "chroot", root, *args], log, env=clean)  # fmt: skip


@functools.cache
def requirements() -> str:
    """What daxfs needs of PyPI, for building, running and testing; nothing is drawn in the guest."""
    return subprocess.run([sys.executable, ROOT / "tools/requirements.py", "test"], capture_output=True,
                          text=True, check=True).stdout


def key() -> str:
    """Changes with what the disk is made of, but not with what the registries have newer."""
    text = "\n".join((SUITE, *PACKAGES, requirements(), VENV, CHECKOUT, *COMMANDS))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(work: Path, say) -> Image:
    """The image in *work*, built there if it is not there or was made of something else.

    *say* is called with a line for each step that takes long. BuildError with what a step said.
    """
    here = work / "image"
    stamp = here / "key"
    if not (stamp.exists() and stamp.read_text() == key()):
        new = work / "image.new"
        for old in (new, here):
            if old.exists():
                shutil.rmtree(old)
        new.mkdir(parents=True)
        _build_root(new, say)
        say("making the disk")
        _disk(new / "root", new / "disk.ext4", 512 * _MIB, new / "log")
        (new / "key").write_text(key())
        new.rename(here)
    _initramfs(here / "root", here / "initrd")
    (kernel,) = (here / "root/boot").glob("vmlinuz-*")
    return Image(kernel, here / "initrd", here / "disk.ext4")


def _build_root(new: Path, say) -> None:
    """The guest's root directory: Debian's packages, then a virtual environment of PyPI's."""
    root, log = new / "root", new / "log"
    say(f"Debian {SUITE} and its kernel, from packages")
    env = dict(os.environ, INITRD="No", LC_ALL="C.UTF-8")  # the guest has its own small initramfs
    # What mmdebstrap mounts in the tree nobody else sees, so nobody keeps it busy and none of it is left.
    _run(["unshare", "--mount", "mmdebstrap", "--mode=root", "--variant=minbase",
          f"--include={','.join(PACKAGES)}",
          '--aptopt=Acquire::Languages "none"',
          *(f"--dpkgopt=path-exclude=/usr/share/{x}/*" for x in ("doc", "man", "locale")),
          SUITE, root, MIRROR], log, env=env)  # fmt: skip
    say("Python packages")
    (root / "requirements.txt").write_text(requirements())
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    # What this host trusts, the chroot trusts while the image is built.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "host-ca.crt")
    _in_chroot(root, ["python3", "-m", "venv", VENV], log)
    _in_chroot(root, [f"{VENV}/bin/pip", "install", "-q", "--cert", "/host-ca.crt", "-r",
                      "/requirements.txt"], log)  # fmt: skip
    (root / "host-ca.crt").unlink()
    (site,) = (root / VENV[1:]).glob("lib/python3*/site-packages")
    (site / "checkout.pth").write_text(f"{CHECKOUT}/site\n")
    for name in COMMANDS:
        (root / VENV[1:] / "bin" / name).symlink_to(f"{CHECKOUT}/site/bin/{name}")
    (root / CHECKOUT[1:]).mkdir()
    (root / "etc/fuse.conf").write_text("user_allow_other\n")
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)


def _disk(tree: Path, disk: Path, spare: int, log: Path) -> None:
    """A file with an ext4 file system that holds *tree* and has *spare* bytes free."""
    used = int(subprocess.run(["du", "-s", "-B1", tree], capture_output=True, text=True,
                              check=True).stdout.split()[0])  # fmt: skip
    disk.unlink(missing_ok=True)
    with open(disk, "xb") as file:
        file.truncate((used * 5 // 4 + spare) // _MIB * _MIB)
    _run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, disk], log)


def _modules(root: Path) -> list[Path]:
    """Files of EARLY_MODULES and of what they need, in the order in which they load."""
    (table,) = (root / "lib/modules").glob("*/modules.dep")
    needs = {}
    for line in table.read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[name] = rest.split()
    named = {Path(name).name.partition(".")[0]: name for name in needs}
    order: list[str] = []
    for module in EARLY_MODULES:
        # depmod lists what a module needs last what loads first
        for name in (*reversed(needs[named[module]]), named[module]):
            if name not in order:
                order.append(name)
    return [table.parent / name for name in order]


def _initramfs(root: Path, initrd: Path) -> None:
    """Busybox, the modules, which the kernel unpacks, and INIT."""
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "modules", "proc", "root")]
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes()))
    entries.append(("init", stat.S_IFREG | 0o755, INIT.encode()))
    for number, path in enumerate(_modules(root)):
        entries.append((f"modules/{number:02}-{path.name}", stat.S_IFREG | 0o644, path.read_bytes()))
    initrd.write_bytes(gzip.compress(cpio(entries), 1))


def cpio(entries) -> bytes:
    """An archive (SVR4 "newc", what the kernel unpacks) of (name, mode, data) entries."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out)


def checkout_disk(work: Path, say) -> Path:
    """A disk with this checkout's tests and with daxfs built from it, by the guest's compiler and Python."""
    root, log = work / "image/root", work / "checkout.log"
    log.unlink(missing_ok=True)
    say("building daxfs of this checkout for the guest")
    source = root / "src"
    source.mkdir(exist_ok=True)
    listed = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", "-z", "-co",
                             "--exclude-standard"], capture_output=True, check=True).stdout  # fmt: skip
    for old in source.iterdir():
        if old.name != "build":  # ninja's: what has not changed since is not built again
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    tree = root / "tree"
    if tree.exists():
        shutil.rmtree(tree)
    shutil.copytree(source / "docs", tree / "docs")  # cases compare what they see with it
    shutil.copytree(source / "tests", tree / "tests", ignore=shutil.ignore_patterns("images"))
    _in_chroot(root, [f"{VENV}/bin/pip", "install", "-q", "--no-build-isolation", "--no-deps",
                      "-Cbuild-dir=build", "--target", "/tree/site", "/src"], log)  # fmt: skip
    _in_chroot(root, [f"{VENV}/bin/python", "-m", "compileall", "-q", "/tree/tests"], log)
    disk = work / "checkout.ext4"
    _disk(tree, disk, 32 * _MIB, log)
    shutil.rmtree(tree)
    return disk
