# SPDX-License-Identifier: MIT
"""Bugs planted around observed mappings (mutants.py has the others; how: plant.py).

Where the order is in compiled code (native/handler_writeback.c, client/client.c) the bug is planted into what
stands beside or in for it here (mapped.py): then it shows that the engine would find such an order.
"""

from .observed import POLICIES
from .plant import Mutant, edit, gone

KERNEL, USER, NATIVE = (POLICIES[name] for name in ("kernel", "user", "kernel, native"))
WORDS = "neither old nor new"
FSYNC = (("fsync", "d/o"),)
RACING = (("fsync_racing", "d/o", 130, 60, 76), ("fsync", "d/o"))
KILLED = (("killed",), ("fsync", "d/o"))
_FLUSH = "        self.region.flush_range(place + at * PAGE, pages * PAGE)\n"
_WROTE = "self.observer.handler.write_back(fmap)\n"
_mapped = Mutant.beginning("mapped", KERNEL)


OBSERVED = (
    _mapped(
        "a look clears the marks, and nothing is flushed",
        edit("fault.observer:Observer._found", "look.found.mark(file.map)", "pass"),
        FSYNC, WORDS,
    ),
    _mapped(
        "a look that skips a page",
        edit("fault.observer:Look._scan", "*wide, piece.start, piece",
             "wide[0] + 4096, wide[1], piece.start, piece"),
        FSYNC, WORDS,
    ),
    _mapped(
        "an fsync that looks after its flush",
        edit("crash.mapped:Observing.fsync", "    self.before_fsync(node)\n", "",
             "return self.flush(node)",
             "pages = self.flush(node)\n    self.before_fsync(node)\n    return pages"),
        FSYNC, WORDS,
    ),
    _mapped(
        "observed files not told to native service",
        edit("fault.observer:File.settle", "self.map.set_state(OBSERVED)", "pass"),
        FSYNC, WORDS, NATIVE,
    ),
    _mapped(
        "the marks of entries cleared before the flush",
        edit("crash.mapped:Observing.before_fsync", _WROTE,
             "self.observer.handler.take(fmap)\n        node.map.unmark(0, 1 << 32)\n"),
        FSYNC, WORDS, USER,
    ),
    _mapped(
        "an entry marked clean though a store came after",
        edit("crash.mapped:Observing.before_fsync", _WROTE,
             _WROTE + "        self.client.racing.result()\n        self.observer.handler.take(fmap)\n"
             "        node.map.unmark(0, 1 << 32)\n"),
        RACING, WORDS, USER,
    ),
    _mapped(
        "what a killed program stored counts as clean",
        edit("fault.observer:Observer._lose", "mapping.stores", "False"),
        KILLED, WORDS, setup="mapped open",
    ),
    _mapped(
        "what a killed program stored stays in entries that nobody writes back",
        edit("fault.observer:Observer._take_marks", "file.left = not self.handler.take(file.map)", "pass"),
        KILLED, WORDS, USER, setup="mapped open",
    ),
    _mapped(
        "msync drains before it flushes",
        edit("crash.mapped:Client.write_back", "    for at,", "    self.region.drain()\n    for at,",
             "reply to who called msync.\n    self.region.drain()", "reply to who called msync."),
        (("mflush", "d/o", 0, 4096),), WORDS,
    ),
    _mapped(
        "a larger size not durable before its pages can be mapped",
        gone("meta.journal:Journal.commit", "before their record is durable.", "\n    region.drain()"),
        (("truncate", "d/o", 30000), ("mstore", "d/o", 20000, 100, 79), ("mpersist", "d/o", 20000, 100)),
        "size is 12003",
    ),
    _mapped(
        "what a program stored behind the end comes to light",
        edit("meta.own:zero_behind", "    _punch(node, size, at)\n", ""),
        (("mstore", "d/o", 12000, 288, 73), ("truncate", "d/o", 30000)), WORDS, silent=False,
    ),
)  # fmt: skip
