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
CUT_KINDS = ("ext4-pool", "xfs-file", "devdax", "block")


@dataclass(frozen=True)
class Case:
    """what, kind: its name; limit: seconds it may take; cut: the host cuts the power while it runs."""

    what: str
    command: tuple[str, ...]
    kind: str = ""
    boot: str = "lines"
    limit: float = 120
    cut: bool = False

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.what, self.kind)))


def check(name: str, *args: str) -> tuple[str, ...]:
    return ("python", "-P", "-m", "guest.checks", name, *args)


def _cases():
    # A kernel 6.12 has the transports dev and pyfuse3, no uring.
    yield Case("doctor", check("doctor"))
    for kind in KINDS:
        yield Case("source", check("source"), kind)
    for kind in KINDS:
        yield Case("files-dev", check("files", "dev"), kind)
    for kind in ("ext4-pool", "devdax"):
        yield Case("files-pyfuse3", check("files", "pyfuse3"), kind)
    yield Case("posix-dev", check("posix", "dev"), "ext4-pool", limit=900)
    yield Case("power-cut", check("load_until_cut"), cut=True)
    # The NVDIMM is the same as before the power cut.
    for kind in CUT_KINDS:
        yield Case("after-power-cut", check("after_cut"), kind, boot="bytes")
    for kind in CUT_KINDS:
        yield Case("source-bytes", check("source"), kind, boot="bytes")


CASES = list(_cases())
