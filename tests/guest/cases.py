# SPDX-License-Identifier: MIT
"""The cases of `make test-vm`: what is run in the guest, on which kind of source, in which boot.

A case is a command; it passes with status 0. What it finds in its environment is told in guest.__main__.
Limits: read by the host too, so nothing here but the standard library.
"""

from dataclasses import dataclass

# A store is safe once its line is written back; with nvdimm-persistence=cpu as soon as it is in the cache.
BOOTS = ("lines", "bytes")
FSDAX = ("ext4-file", "ext4-pool", "xfs-file", "xfs-pool")
KINDS = (*FSDAX, "devdax", "block")
# Rows of the table in docs/mappings.md: who makes which.
TABLE = (("ext4-pool", "dev", "pool on ext4 or XFS with -o dax; dev"),
         ("xfs-pool", "dev", "pool on ext4 or XFS with -o dax; dev"),
         ("devdax", "dev", "file, device; uring, dev"))
CUT_KINDS = ("ext4-pool", "xfs-pool", "devdax", "block")


@dataclass(frozen=True)
class Case:
    """what, kind: its name; limit: seconds it may take; cut: the host cuts the power while it runs; more: it
    is left out where no case is named, since others show nearly the same."""

    what: str
    command: tuple[str, ...]
    kind: str = ""
    boot: str = "lines"
    limit: float = 300  # four times as long as on a quiet machine
    cut: bool = False
    more: bool = False

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.what, self.kind)))


def check(name: str, *args: str) -> tuple[str, ...]:
    return ("python", "-P", "-m", "guest.checks", name, *args)


def _cases():
    # A kernel 6.12 has the transports dev and pyfuse3, no uring.
    yield Case("doctor", check("doctor"))
    # A region that is a file is what a pool directory has, too.
    for kind in KINDS:
        yield Case("source", check("source"), kind, more=kind == "ext4-file")
    for kind in KINDS:
        yield Case("files-dev", check("files", "dev"), kind, more=kind.endswith("-file"))
    for kind in ("ext4-pool", "devdax"):
        yield Case("files-pyfuse3", check("files", "pyfuse3"), kind, more=kind == "ext4-pool")
    for kind in ("ext4-pool", "xfs-pool"):
        yield Case("direct", check("direct"), kind)
        yield Case("revoke", check("revoke"), kind)
        yield Case("pinned", ("python", "-P", "-m", "guest.pinned"), kind)
        yield Case("tracked", check("tracked"), kind)
        yield Case("marks", check("marks"), kind, more=kind == "xfs-pool")
    for kind, transport, row in TABLE:
        yield Case(f"table-{transport}", check("table", transport, row), kind)
    # What has no DAX flag stands in the region, whatever that is made of: the table says nothing new there.
    yield Case("posix-dev", check("posix", "dev"), "ext4-pool", limit=900, more=True)
    yield Case("posix-dax", check("posix", "dev", "dax"), "xfs-pool", limit=900)
    yield Case("power-cut", check("load_until_cut"), cut=True)
    # The NVDIMM is the same as before the power cut.
    for kind in CUT_KINDS:
        yield Case("after-power-cut", check("after_cut"), kind, boot="bytes")
    for kind in CUT_KINDS:
        yield Case("source-bytes", check("source"), kind, boot="bytes")


CASES = list(_cases())
