# SPDX-License-Identifier: MIT
"""Stores of other processes against write-backs, in both modes: none is lost (races.py).

A store between flush and clean that nobody marks again would show. `tools/races.py` does the same for as
many rounds as one likes.
"""

import time

import pytest
import races

# How long the wrong orders leave their gap open: the children run and store in it, on any machine.
GAP = 0.02


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
@pytest.mark.parametrize("fault, pmd", [("user", True), ("user", False), ("kernel", True)],
                         ids=["user-2M", "user-4K", "kernel"])  # fmt: skip
def test_no_store_is_lost(pool_kit, fault, pmd, killed):
    if not races.available(fault):
        pytest.skip("no userfaultfd, or not all of it")
    seen = races.a_round(pool_kit.io(), fault, 5, 1.5, pmd, killed)
    assert seen.write_backs > 3 and seen.pages > 1000
    assert killed or seen.stores > 1000


def _flush_then_look(daemon) -> int:
    pages = daemon.io.dax.writeback(daemon.node.map)
    time.sleep(GAP)
    look = daemon.observer.look(daemon.node.ino, daemon.below.st_dev)
    look.ino = daemon.below.st_ino
    look.run()
    look.ino = daemon.node.ino
    daemon.observer.take(look)
    return pages


def _clean_once_more(daemon) -> int:
    pages = daemon.handler.write_back(daemon.node.map)
    time.sleep(GAP)
    daemon.handler.take(daemon.node.map)
    daemon.node.map.dirty.clear(0, 1 << 32)
    return pages


@pytest.mark.parametrize("fault, wrong", [("kernel", _flush_then_look), ("user", _clean_once_more)],
                         ids=["looks-late", "cleans-late"])  # fmt: skip
def test_a_wrong_order_shows(pool_kit, monkeypatch, fault, wrong):
    """So a round can fail."""
    if not races.available(fault):
        pytest.skip("no userfaultfd, or not all of it")
    daemon = {"kernel": races.KernelDaemon, "user": races.UserDaemon}[fault]
    monkeypatch.setattr(daemon, "write_back", wrong)
    with pytest.raises(races.Lost):
        races.a_round(pool_kit.io(), fault, 6, 1)
