# SPDX-License-Identifier: MIT
"""The guest's NVDIMM: its namespaces, made once and found again after a boot, and the file systems on them.

Limits: one NVDIMM with label space; everything through ndctl, mkfs and mount, nothing of daxfs.
"""

import json
import subprocess
import time
from pathlib import Path

MIB = 1 << 20
# name: (mode, MiB); page structs stand on the media, so a few MiB less can be used
NAMESPACES = {"ext4": ("fsdax", 640), "xfs": ("fsdax", 640), "devdax": ("devdax", 256),
              "block": ("fsdax", 128)}
MOUNTS = Path("/pmem")
# An extent of 2 MiB at a multiple of 2 MiB is what a PMD mapping takes.
MKFS = {"ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "stride=512,stripe_width=512"),
        "xfs": ("mkfs.xfs", "-q", "-f", "-d", "su=2m,sw=1")}  # fmt: skip


def _run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _listed(*args: str) -> list[dict]:
    found = json.loads(_run("ndctl", "list", *args) or "[]")
    return found if isinstance(found, list) else [found]


def devices() -> dict[str, str]:
    """Device of each of our namespaces, by name."""
    found = {}
    for one in _listed("-N", "-X"):
        if one.get("name") in NAMESPACES:
            device = one.get("blockdev") or one["daxregion"]["devices"][0]["chardev"]
            found[one["name"]] = f"/dev/{device}"
    return found


def _make() -> None:
    """All namespaces, on an NVDIMM whose labels nobody has written yet."""
    _run("modprobe", "device_dax")  # udev's affair elsewhere
    (region,) = (one["dev"] for one in _listed("-R"))
    _run("ndctl", "disable-region", region)
    _run("ndctl", "init-labels", "-f", "nmem0")
    _run("ndctl", "enable-region", region)
    for name, (mode, size) in NAMESPACES.items():
        _run("ndctl", "create-namespace", "-r", region, "-n", name, "-m", mode, "-s", str(size * MIB),
             "-M", "dev", "-a", str(2 * MIB))
    for name, command in MKFS.items():
        _run(*command, devices()[name])


def prepare() -> float:
    """Make the namespaces where there are none, mount the file systems with DAX; the seconds it took."""
    began = time.monotonic()
    if not devices():
        _make()
    for name in MKFS:
        (MOUNTS / name).mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", name, "-o", "dax=always", devices()[name], str(MOUNTS / name))
    return round(time.monotonic() - began, 1)


def leave() -> None:
    for name in MKFS:
        _run("umount", str(MOUNTS / name))
