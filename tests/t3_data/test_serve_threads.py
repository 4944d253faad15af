# SPDX-License-Identifier: MIT
"""serve() in threads beside the metadata thread: inodes of one piece, no lost sizes, handles that close."""

import errno
import itertools
import struct
import threading
import time

import pytest
import rawmsg as R
from datakit import PAGE, content, noise
from servekit import File, Served
from test_serve_answers import attributes

from daxfs.data._serve import DIRECT, WRITE, Server
from daxfs.meta import attr

LIMIT = 60  # seconds after which what is waited for will not come


class Feeder(threading.Thread):
    """Calls *look(reply)* with the answers to *make()* until it is stopped; keeps what it raises."""

    def __init__(self, server, make, look):
        super().__init__()
        self.server, self.make, self.look = server, make, look
        self.stopped, self.count, self.error = False, 0, None

    def run(self):
        try:
            while not self.stopped:
                self.look(self.server.feed(self.make()))
                self.count += 1
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped = True
        self.join(LIMIT)
        assert not self.is_alive()
        if self.error:
            raise self.error


def until(condition, do=lambda: time.sleep(0.01), times: int = 0) -> None:
    """Call *do()* until *condition()* holds, and *times* times at least."""
    end = time.monotonic() + LIMIT
    while times > 0 or not condition():
        assert time.monotonic() < end, "waited too long"
        do()
        times -= 1


@pytest.fixture
def served(kit):
    return Served(kit.io())


def test_an_inode_is_read_in_one_piece(served):
    """A chown stores uid, gid and ctime in one record: no reader may see a part of it."""
    f = served.open(size=100)
    kinds = {"done": 0, "relay": 0}

    def look(answer):
        verdict, error, reply = answer
        kinds[verdict] += 1
        if verdict == "done":
            _, _, _, _, _, mtime, _, mode, _, uid, gid, *_ = attributes(reply)
            assert error == 0 and uid == gid == mode & 0o777 == mtime

    attr.setattr(served.fs, f.ino, {"uid": 0, "gid": 0, "mode": 0, "mtime": 0})
    # A Server of its own: its counters are one thread's.
    other = Served(served.io)
    numbers = itertools.cycle(range(512))

    def change():
        n = next(numbers)
        attr.setattr(served.fs, f.ino, {"uid": n, "gid": n, "mode": n, "mtime": n})

    with Feeder(other.server, lambda: R.getattr_(f.ino), look) as feeder:
        until(lambda: feeder.error or kinds["done"] > 5000, change, 3000)


def test_without_the_sequence_a_torn_inode_would_be_seen(served):
    """What the test above relies on: between begin_stores and end_stores nothing is answered."""
    table, f = served.fs.region.table, served.open(size=100)
    place = served.fs.inodes.place(f.ino)
    before = bytes(served.fs.mem[place : place + 256])
    table.begin_stores()
    served.fs.region.store(place + 88, struct.pack("<I", 77))
    assert served.feed(R.getattr_(f.ino)) == ("relay", 0, b"")
    served.fs.region.store(place, before)
    table.end_stores()
    assert served.feed(R.getattr_(f.ino))[0] == "done"


def test_appends_beside_changes_of_the_inode(served, kit):
    """Native appends in one thread, chmod and settle in the metadata thread: no byte is lost."""
    fs, f = served.fs, served.open(size=1)
    text = noise(PAGE)
    other = Served(served.io)
    writer = File(other, f.node, WRITE | DIRECT)
    grown = [1]

    def make():
        at = min(grown[0], PAGE - 1)  # of a full page the last byte again
        return R.write(f.ino, writer.fh, at, text[at : at + 1])

    def look(answer):
        assert answer[0] in ("done", "call") and answer[1] == 0
        grown[0] += answer[0] == "done" and grown[0] < PAGE

    modes = itertools.cycle(range(0o600, 0o610))

    def change():
        attr.setattr(fs, f.ino, {"mode": next(modes)})
        fs.journal.settle()
        attr.note_plain(fs, f.node)

    with Feeder(other.server, make, look) as feeder:
        until(lambda: feeder.error or grown[0] > 200, change, 200)
    assert fs.inodes.read(f.ino).size >= grown[0] == f.node.map.size
    assert content(kit.crashed(served.io), b"f")[: grown[0]] == text[: grown[0]]


def test_reads_and_writes_of_one_file(served):
    """Whole pages of one letter: no read sees two."""
    f = served.open(size=2 * PAGE)
    servers = [Served(served.io) for _ in range(3)]
    handles = [File(each, f.node, WRITE | DIRECT) for each in servers]
    served.io.write(f.node, 0, b"z" * PAGE)
    served.fs.journal.settle()

    def look(answer):
        verdict, error, reply = answer
        assert (verdict, error) == ("done", 0) and len(set(reply)) == 1 and len(reply) == PAGE

    def written(answer):
        assert answer == ("done", 0, struct.pack("<II", PAGE, 0))

    feeders = [
        Feeder(servers[0].server, lambda: R.write(f.ino, handles[0].fh, 0, b"a" * PAGE), written),
        Feeder(servers[1].server, lambda: R.write(f.ino, handles[1].fh, 0, b"b" * PAGE), written),
        Feeder(servers[2].server, lambda: R.read(f.ino, handles[2].fh, 0, PAGE), look),
    ]
    with feeders[0], feeders[1], feeders[2]:
        until(lambda: any(each.error for each in feeders) or min(each.count for each in feeders) > 300)


def test_handles_that_close_beside_requests(served):
    """Every answer is right or EBADF, and close waits: a map may go as soon as it has returned."""
    f = served.open(size=2 * PAGE)
    now = [f.fh]

    def look(answer):
        assert answer[:2] in (("done", 0), ("done", -errno.EBADF)), answer[:2]
        if not answer[1]:
            assert answer[2] == noise(100)

    def change():
        fh = served.server.open(f.node.map, f.ino, 0)
        old, now[0] = now[0], fh
        served.server.close(old)

    with Feeder(served.server, lambda: R.read(f.ino, now[0], 0, 100), look) as feeder:
        until(lambda: feeder.error or feeder.count > 500, change, 500)
    assert len(served.server) == 1 and served.fs.region.table.users == 0


def test_close_waits_for_a_request_that_waits_for_the_file(served):
    """The request holds the handle while it waits for the map's lock."""
    f = served.open(size=PAGE)
    order = []
    reader = threading.Thread(target=lambda: order.append(("read", f.read(0, 10)[:2])))
    closer = threading.Thread(target=lambda: (f.close(), order.append("closed")))
    with f.node.map:
        reader.start()
        time.sleep(0.1)
        closer.start()
        time.sleep(0.1)
        assert order == []
    reader.join(5)
    closer.join(5)
    assert sorted(order, key=str) == [("read", ("done", 0)), "closed"]


def test_no_request_is_answered_under_a_lock_that_metadata_hold(served):
    """A transaction has the file: reads and writes wait for its end, and see what it did."""
    f = served.open(size=PAGE)
    done = []
    thread = threading.Thread(target=lambda: done.append(f.write(0, b"x" * 10)))
    with served.fs.begin() as tx:
        tx.inode(f.ino).mode |= 0o4000
        thread.start()
        time.sleep(0.1)
        assert not done
    thread.join(5)
    assert done == [("call", 0, b"")], "setuid is there now"


def test_a_server_outlives_its_file_system_object(kit):
    """It keeps the data path and the maps of open handles."""
    served = Served(kit.io())
    f = served.open(size=100)
    server, ino, fh = served.server, f.ino, f.fh
    del served.io, f.node, f.served, f
    assert server.feed(R.read(ino, fh, 0, 10))[:2] == ("done", 0)
    server.close(fh)
    assert isinstance(server, Server)
