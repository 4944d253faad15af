# SPDX-License-Identifier: MIT
"""Plain facts of a superblock and of a mounted file system, for info, stat and the control socket.

Limits: plain values only (JSON takes them), no pyfuse3; reads, never changes.
"""

import contextlib
import os
import uuid as uuidlib

from daxfs import layout
from daxfs.meta.fs import state_of
from daxfs.pfn import PAGE_SIZE

# Feature bits by word, as `daxfs info` calls them.
FEATURES = {
    "compat": {layout.COMPAT_FLAGS: "flags of inodes"},
    "ro_compat": {layout.RO_COMPAT_POISON: "poison"},
    "incompat": {layout.INCOMPAT_OWN: "own ranges"},
}


def of_superblock(sb) -> dict:
    """What mkfs decided; sizes in bytes, places in pages."""
    return {
        "uuid": str(uuidlib.UUID(bytes=sb.uuid)),
        "label": os.fsdecode(sb.label).encode(errors="replace").decode(),
        "format_rev": sb.format_rev,
        "features": {"compat": sb.compat, "ro_compat": sb.ro_compat, "incompat": sb.incompat},
        "created_ns": sb.created,
        "bytes": sb.npages * PAGE_SIZE,
        "map": {layout.MAP_MEM: "mem", layout.MAP_DEV: "dev"}.get(sb.map, str(sb.map)),
        "inodes": sb.capacity,
        "journal_bytes": sb.journal_pages * PAGE_SIZE,
        "data_pfn": sb.data_pfn,
        "parts": [
            {"uuid": str(uuidlib.UUID(bytes=uuid)), "pfn_start": start, "bytes": pages * PAGE_SIZE}
            for uuid, start, pages in sb.sources
        ],
    }


def areas(sb) -> list:
    """What lies where: (name, first byte, end) each. Directories and extent blocks lie among the data."""
    pages = [("superblock", 0, 1), ("state", layout.STATE_PFN, layout.STATE_PFN + 1),
             ("journal", sb.journal_pfn, sb.journal_pfn + sb.journal_pages),
             ("inode", sb.inode_pfn, sb.inode_pfn + sb.inode_pages),
             ("map", sb.map_pfn, sb.map_pfn + sb.map_pages),
             *(("data", start, end) for start, end in sb.data_ranges()),
             ("backup", sb.backup_pfn, sb.backup_pfn + 1),
             *(("label", start, start + 1) for _, start, _ in sb.sources[1:])]  # fmt: skip
    return [(name, start * PAGE_SIZE, end * PAGE_SIZE) for name, start, end in pages if start < end]


def of_state(mem, seed: int) -> dict:
    """The state page; CorruptError where it is damaged."""
    state = state_of(mem, seed)
    return {
        "clean": not state["mounted"],
        "mount_count": state["mount_count"],
        "last_mount_ns": state["last_mount"],
        "last_check_ns": state["last_check"],
    }


def of_space(fs) -> dict:
    """Space of a mounted FileSystem, in bytes and inodes."""
    have = fs.statfs()
    return {
        "bytes": have["blocks"] * PAGE_SIZE,
        "free_bytes": have["bfree"] * PAGE_SIZE,
        "inodes": have["files"],
        "free_inodes": have["ffree"],
        "poisoned_bytes": fs.poison.pages * PAGE_SIZE,
    }


def of_ranges(region) -> dict | None:
    """How many ranges inodes have, with size and storage in bytes; None without a pool directory."""
    pool = region.pool
    if pool is None:
        return None
    have = []
    for owner in pool.owners():
        with contextlib.suppress(FileNotFoundError):  # one that was removed under a mounted region
            have.append(pool.stat(*owner))
    size, stored = sum(one.st_size for one in have), sum(one.st_blocks for one in have) * 512
    return {"count": len(have), "bytes": size, "stored_bytes": stored}
