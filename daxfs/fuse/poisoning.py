# SPDX-License-Identifier: MIT
"""The list of poisoned pages of a live mount: what `daxfs poison` asks over the control socket.

What the kernel has in its page cache of a file is dropped around an addition: once before, so that what a
mapping stored goes its way as it would have, and once after, so that the next access asks us. Pages that the
fault handler mapped are taken away. Limits: trio.
"""

import errno
import logging

import trio

from ..errors import fail
from ..meta import poison

log = logging.getLogger("daxfs.mount")


class Poisoner:
    """*operations*: Operations."""

    def __init__(self, operations):
        self.operations, self.fs = operations, operations.fs

    def ask(self, wish):
        """{"do": "list"}, or {"do": "add" | "clear", "offset", "length"[, "ino", "force"]} in bytes."""
        if not isinstance(wish, dict):
            raise fail(errno.EINVAL, "not a request")
        if wish.get("do") == "list":
            return {"poison": poison.describe(self.fs)}
        numbers = [wish.get("offset"), wish.get("length"), wish.get("ino", 0)]
        if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 1 << 63 for n in numbers):
            raise fail(errno.EINVAL, "not a range of bytes")
        if self.operations.recorded:
            raise fail(errno.EOPNOTSUPP, "a recording can't hold poison")
        runs = poison.places(self.fs, *numbers)
        if wish.get("do") == "clear":
            pages = poison.clear(self.fs, runs)
            self.operations.tell_limits()
            return {"pages": pages, "runs": _plain(runs)}
        if wish.get("do") != "add":
            raise fail(errno.EINVAL, "unknown request")
        return self._add(numbers, runs, bool(wish.get("force")))

    async def _add(self, numbers, runs, force: bool):
        try:
            files = self._files(runs)
            await self._forget_pages(files)
            runs = poison.places(self.fs, *numbers)  # anew: other requests came meanwhile
            pages = poison.add(self.fs, runs, force)
            self.operations.tell_limits()
            for owner, first, last in runs:
                if owner != poison.PACKED:
                    await self.operations.observing.poisoned(owner[0], first, last)
            await self._forget_pages(files)
            log.info("%d pages poisoned", pages)
            yield {"pages": pages, "runs": _plain(runs)}
        except OSError as error:
            yield {"error": error.strerror or str(error), "errno": error.errno or errno.EIO}

    def _files(self, runs) -> set[int]:
        """The files in use that have these pages."""
        found = set()
        for owner, first, last in runs:
            if owner != poison.PACKED:
                found.add(owner[0])
                continue
            for node in self.fs.nodes.values():
                if any(pfn < last and first < pfn + pages for _, pages, pfn, *_ in node.map.extents()):
                    found.add(node.ino)
        return found

    async def _forget_pages(self, files) -> None:
        """Have the kernel write back and drop what it has of them. It may wait for us: not in our thread."""
        for ino in files:
            try:
                await trio.to_thread.run_sync(self.operations.notify, ino)
            except OSError as error:
                if error.errno != errno.ENOENT:  # it has just forgotten the inode
                    log.warning("inode %d: the kernel may show poisoned pages yet: %s", ino, error)


def _plain(runs) -> list[dict]:
    return [{"ino": owner[0], "offset": first << 12, "length": (last - first) << 12}
            for owner, first, last in runs]
