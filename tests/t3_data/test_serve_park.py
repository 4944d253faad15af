# SPDX-License-Identifier: MIT
"""Parked handles: RELEASE and OPEN without the metadata thread, and how that thread gets them back."""

import errno
import os
import struct
import threading
import time

import pytest
import rawmsg as R
from datakit import PAGE, Kit, noise
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from servekit import Served

from daxfs._iomap import PARKS
from daxfs.data._serve import DIRECT, PARKED_EACH, PARKED_MOST, WRITE
from daxfs.meta import namespace

BACKING, FOPEN = 7, 0xE1
ROOT, USER = (0, 0, 5), (1000, 1000, 77)


class Parking(Served):
    """A Served that opens as fuse.ops does, where handles may be parked."""

    def limits(self) -> None:
        super().limits()
        self.server.parks = not self.fs.readonly

    def direct(self, node, flags=os.O_RDWR, caller=ROOT, backing=BACKING) -> int:
        """The number of a handle that the metadata thread opens, its reply sent."""
        if node.opens == 1:
            node.map.set_state(PARKS)
        fh = self.server.open(node.map, node.ino, WRITE | DIRECT, backing, (flags, *caller))
        self.server.opened(fh, FOPEN)
        return fh

    def open_by(self, ino: int, flags=os.O_RDWR, caller=ROOT, more: int = 0):
        """The number of the handle that an OPEN gets natively; None where it is relayed."""
        verdict, error, reply = self.feed(R.open_(ino, flags, caller, more))
        if verdict == "relay":
            return None
        assert (verdict, error) == ("done", 0)
        fh, fopen, backing = struct.unpack("<QIi", reply)
        assert (fopen, backing) == (FOPEN, BACKING)
        return fh

    def parks(self, ino: int, fh: int) -> bool:
        """RELEASE; whether it was answered natively."""
        verdict, error, reply = self.feed(R.release(ino, fh))
        assert verdict in ("done", "relay") and not error and not reply
        return verdict == "done"


@pytest.fixture
def served(pool_kit):
    return Parking(pool_kit.io())


@pytest.fixture
def node(served):
    return served.open(size=3 * PAGE).node


def test_release_and_open_are_answered_with_the_same_handle(served, node):
    fh = served.direct(node)
    assert not served.server.armed
    for _ in range(3):
        assert served.parks(node.ino, fh)
        assert served.server.parked() == [node.ino] and served.server.armed
        assert served.open_by(node.ino) == fh
        assert served.server.parked() == []
        assert served.feed(R.read(node.ino, fh, 0, 10))[2] == noise(3 * PAGE)[:10]
    assert served.open_by(node.ino) is None
    assert served.server.counts()["operations"]["open"].count == 3
    assert served.server.counts()["operations"]["release"].count == 3


def test_a_parked_handle_is_nobodys(served, node):
    fh = served.direct(node)
    assert served.parks(node.ino, fh)
    requests = [R.read(node.ino, fh, 0, 10), R.write(node.ino, fh, 0, b"x"), R.fsync(node.ino, fh),
                R.getattr_(node.ino, fh), R.release(node.ino, fh), R.lseek(node.ino, fh, 0, 3)]
    for raw in requests:
        assert served.feed(raw) == ("done", -errno.EBADF, b"")
    assert served.server.reap() == [fh]
    for raw in requests:
        assert served.feed(raw) == ("done", -errno.EBADF, b"")
    assert served.open_by(node.ino) is None
    served.server.close(fh)


@pytest.mark.parametrize("how", [
    {"flags": os.O_RDONLY}, {"flags": os.O_RDWR | os.O_APPEND}, {"flags": os.O_RDWR | os.O_TRUNC},
    {"flags": os.O_RDWR | os.O_NOATIME}, {"flags": os.O_RDWR | os.O_DSYNC}, {"more": 1},
    {"caller": USER}, {"caller": (0, 0, 6), "flags": os.O_WRONLY},
])  # fmt: skip
def test_another_open_does_not_get_it(served, node, how):
    fh = served.direct(node)
    other = served.open(b"g", size=5)
    assert served.parks(node.ino, fh)
    assert served.open_by(node.ino, **how) is None and served.open_by(other.ino) is None
    assert served.server.parked() == [node.ino]
    assert served.server.opener(fh) == ROOT[2]
    assert served.open_by(node.ino, caller=(0, 9, 9)) == fh  # of root it does not matter which
    assert served.server.opener(fh) == 9


@pytest.mark.parametrize("caller", [ROOT, (1001, 1000, 77), (1000, 1001, 77), (1000, 1000, 78)])
def test_a_users_handle_is_his_alone(served, node, caller):
    fh = served.direct(node, caller=USER)
    assert served.parks(node.ino, fh)
    assert served.open_by(node.ino, caller=caller) is None
    assert served.open_by(node.ino, caller=USER) == fh


def test_what_only_matters_at_once_is_not_compared(served, node):
    fh = served.direct(node, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY)
    assert served.parks(node.ino, fh)
    assert served.open_by(node.ino) == fh


def refusals():
    """What keeps a handle from being parked: called with served, node and fh."""
    def unlinked(served, node, fh):
        namespace.unlink(served.fs, 1, b"f")

    def dirty(served, node, fh):
        node.map.dirty.set(0, 1)

    def torn(served, node, fh):
        os.ftruncate(node.map.own.fd, 0)
        assert served.feed(R.read(node.ino, fh, 0, 10))[1] == -errno.EIO
        assert node.map.own.torn

    def barred(served, node, fh):
        node.map.clear_state(PARKS)

    def forbidden(served, node, fh):
        served.server.parks = False

    def nothing(served, node, fh):
        served.server.nothing = True

    def dead(served, node, fh):
        served.fs.region.table.kill()

    return [unlinked, dirty, torn, barred, forbidden, nothing, dead]


@pytest.mark.parametrize("refuse", refusals(), ids=lambda f: f.__name__)
def test_what_is_not_parked(served, node, refuse):
    fh = served.direct(node)
    refuse(served, node, fh)
    assert not served.parks(node.ino, fh)
    assert served.server.parked() == [] and not served.server.armed


def test_handles_that_are_never_parked(served, node):
    server = served.server
    node.map.set_state(PARKS)
    no_backing = server.open(node.map, node.ino, WRITE, 0, (os.O_RDWR, *ROOT))
    server.opened(no_backing, FOPEN)
    no_reply = server.open(node.map, node.ino, WRITE, BACKING, (os.O_RDWR, *ROOT))
    for fh in (no_backing, no_reply):
        assert not served.parks(node.ino, fh)
    no_opener = server.open(node.map, node.ino, WRITE, BACKING)
    server.opened(no_opener, FOPEN)
    assert served.parks(node.ino, no_opener)  # for nobody: it goes by time
    assert served.open_by(node.ino, 0xFFFFFFFF & ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC)) is None
    assert served.open_by(node.ino) is None


def test_nothing_is_handed_out_where_it_is_forbidden_meanwhile(served, node):
    fh = served.direct(node)
    assert served.parks(node.ino, fh)
    for limit, value in (("parks", False), ("nothing", True)):
        before = getattr(served.server, limit)
        setattr(served.server, limit, value)
        assert served.open_by(node.ino) is None
        setattr(served.server, limit, before)
    assert served.open_by(node.ino) == fh


def test_how_many_are_parked(served):
    files = [served.open(b"f%d" % n, size=1).node for n in range(PARKED_MOST // PARKED_EACH + 1)]
    handles = [(node, served.direct(node)) for node in files for _ in range(PARKED_EACH + 1)]
    done = [served.parks(node.ino, fh) for node, fh in handles]
    assert done == ([True] * PARKED_EACH + [False]) * (len(files) - 1) + [False] * (PARKED_EACH + 1)
    assert len(served.server.parked()) == PARKED_MOST == len(served.server.reap())
    assert served.server.disarm() and not served.server.armed


def test_reaped_by_inode_and_by_age(served, node):
    other = served.open(b"g", size=5).node
    first, second, third = served.direct(node), served.direct(other), served.direct(node)
    for ino, fh in ((node.ino, first), (other.ino, second), (node.ino, third)):
        assert served.parks(ino, fh)
    assert served.server.reap(age=60) == []
    assert served.server.reap(other.ino) == [second] and served.server.reap(other.ino) == []
    assert not served.server.disarm()
    assert served.server.reap() == [first, third]
    assert served.server.disarm()
    for fh in (first, second, third):
        served.server.close(fh)


def test_closing_takes_it_out(served, node):
    fh = served.direct(node)
    assert served.parks(node.ino, fh)
    served.server.close(fh)
    assert served.server.parked() == [] == served.server.reap()
    assert served.open_by(node.ino) is None


FLAGS = (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_APPEND)
CALLERS = (ROOT, (0, 0, 6), USER, (1000, 1000, 78), (1001, 1000, 77))


class Model(RuleBasedStateMachine):
    """Any order of opens, releases, reaping and prohibitions, against a list of what is parked."""

    def __init__(self):
        super().__init__()
        self.kit = Kit(True)
        self.served = Parking(self.kit.io())
        self.nodes = [self.served.open(b"f%d" % n, size=10).node for n in range(2)]
        self.held, self.parked = {}, []  # fh: (node, flags, caller); fhs in order
        self.known = {}

    @rule(which=st.integers(0, 1), flags=st.sampled_from(FLAGS), caller=st.sampled_from(CALLERS))
    def open(self, which, flags, caller):
        node = self.nodes[which]
        fh = self.served.open_by(node.ino, flags, caller)
        fits = [n for n in self.parked if self.fits(self.known[n], node, flags, caller)]
        allowed = self.served.server.parks and not self.served.server.nothing
        assert fh == (fits[-1] if fits and allowed else None)
        if fh is None:
            state = node.map.state & PARKS
            fh = self.served.direct(node, flags, caller)
            if not state:
                node.map.clear_state(PARKS)
            self.known[fh] = node, flags, caller
        else:
            self.parked.remove(fh)
        self.held[fh] = node

    @staticmethod
    def fits(known, node, flags, caller) -> bool:
        same = known[2] == caller or known[2][0] == caller[0] == 0
        return known[0] is node and known[1] == flags and same

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        fh = data.draw(st.sampled_from(sorted(self.held)))
        node = self.held.pop(fh)
        server = self.served.server
        same = sum(self.known[n][0] is node for n in self.parked)
        wanted = (server.parks and not server.nothing and bool(node.map.state & PARKS) and same < PARKED_EACH)
        assert self.served.parks(node.ino, fh) == wanted
        if wanted:
            self.parked.append(fh)
        else:
            server.close(fh)
            del self.known[fh]

    @rule(which=st.integers(-1, 1))
    def reap(self, which):
        ino = 0 if which < 0 else self.nodes[which].ino
        wanted = [fh for fh in self.parked if which < 0 or self.known[fh][0].ino == ino]
        assert self.served.server.reap(ino) == wanted
        for fh in wanted:
            self.served.server.close(fh)
            self.parked.remove(fh)
            del self.known[fh]

    @rule(limit=st.sampled_from(("parks", "nothing")), value=st.booleans())
    def forbid(self, limit, value):
        setattr(self.served.server, limit, value)

    @rule(which=st.integers(0, 1), on=st.booleans())
    def bar(self, which, on):
        fmap = self.nodes[which].map
        (fmap.set_state if on else fmap.clear_state)(PARKS)

    @invariant()
    def same(self):
        assert self.served.server.parked() == [self.known[fh][0].ino for fh in self.parked]
        assert len(self.served.server) == len(self.known) + 2

    def teardown(self):
        self.kit.close()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


def test_no_handle_is_ever_two_programs(served):
    """Threads open and release, another one reaps: a handle belongs to one of them, or is parked, or gone."""
    node = served.open(size=100).node
    server, lock, owner, errors = served.server, threading.Lock(), {}, []
    stop = threading.Event()
    served.direct(node)
    taken = []

    def program(me):
        try:
            while not stop.is_set():
                fh = served.open_by(node.ino)
                if fh is None:
                    with lock:
                        fh = served.direct(node)
                else:
                    taken.append(fh)
                assert owner.setdefault(fh, me) == me, "a handle of somebody else's"
                assert served.feed(R.read(node.ino, fh, 0, 10))[1] == 0
                del owner[fh]
                if not served.parks(node.ino, fh):
                    with lock:
                        server.close(fh)
        except Exception as error:  # whatever it is, the test fails with it
            errors.append(error)

    threads = [threading.Thread(target=program, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    turns, until = 0, time.monotonic() + 60
    while (turns < 300 or len(taken) <= 100) and time.monotonic() < until:
        turns += 1
        for fh in server.reap():
            assert fh not in owner
            with lock:
                server.close(fh)
        stop.wait(0.005)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors, errors
    assert len(taken) > 100
    for fh in server.reap():
        server.close(fh)
    assert len(server) == 2  # of `served.open` and of the first `direct`


def test_broken_requests(served, node):
    """Whatever is asked of them, handles are in use, parked or gone, and each can be closed."""
    server = served.server
    handles = [served.direct(node) for _ in range(3)]
    corpus = [R.open_(node.ino, os.O_RDWR, caller) for caller in (ROOT, USER)]
    corpus.append(R.getattr_(node.ino, handles[0]))
    for fh in handles:
        corpus += [R.release(node.ino, fh), R.read(node.ino, fh, 0, 10), R.lseek(node.ino, fh, 0, 3)]
    report = server.fuzz(corpus, 12345, 200_000)
    assert report["wrong"] is None and report["done"] == 200_000
    answered = server.counts()["operations"]
    assert answered["open"].count - answered["open"].errors > 100
    assert answered["release"].count - answered["release"].errors > 100
    left = server.reap()
    assert set(left) <= set(handles)
    for fh in handles:
        server.close(fh)  # waits for ever where a request still counts as its user
    assert len(server) == 1
    with node.map:
        pass
