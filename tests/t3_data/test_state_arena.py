# SPDX-License-Identifier: MIT
"""Per-page state in the region (mkfs --map=dev, SEEDS S5): slots, exhaustion, mounts, kill."""

import errno
import gc
import random
import threading

import numpy as np
import pytest
from datakit import MIB, PAGE, calls, create, noise, reopen

from daxfs import layout as L
from daxfs._flush import DirtyMap, ExtentMap, StateArena
from daxfs._record import Recorder
from daxfs.data._tracker import POLICIES
from daxfs.meta import file, namespace

CHUNK = 1 << 15  # file pages that one chunk covers
SLOT = 4224  # 4176 bytes of a chunk, on a line's boundary
AREA = 64 * PAGE  # where the arenas of these tests stand in an empty region


@pytest.fixture
def region(kit):
    region = kit.sources(4 * MIB)
    region.array[:] = 0xEE  # what an earlier mount left must not matter
    return region


def arena_of(region, slots: int, extra: int = 0) -> StateArena:
    return StateArena(region.address + AREA, slots * SLOT + extra, region.table)


def outside(region, slots):
    """The bytes of the region that no slot covers."""
    return np.concatenate((region.array[:AREA], region.array[AREA + slots * SLOT :]))


def test_chunks_come_from_the_region_and_go_back(region):
    arena = arena_of(region, 3, extra=SLOT - 1)
    assert (arena.slots, arena.used, arena.fallbacks) == (3, 0, 0)
    dirty = DirtyMap(arena)
    dirty.set(5, 10)
    dirty.set(7 * CHUNK - 1, 2)
    assert (arena.used, dirty.chunks) == (3, 3)
    assert list(dirty.runs()) == [(5, 10), (7 * CHUNK - 1, 2)] and 6 in dirty and 4 not in dirty
    assert dirty.count_range(0, 10) == 5
    assert not (region.array[AREA : AREA + 3 * SLOT] == 0xEE).all()
    dirty.clear(5, 10)
    assert arena.used == 2
    dirty.set(1, 1)
    assert list(dirty.runs()) == [(1, 1), (7 * CHUNK - 1, 2)], "a slot that was used before is zeroed"
    del dirty
    gc.collect()
    assert (arena.used, arena.fallbacks) == (0, 0)
    assert (outside(region, 3) == 0xEE).all() and region.table.users == 0


def test_when_the_slots_are_used_up_memory_serves_and_is_counted(region):
    arena = arena_of(region, 4)
    one, two = DirtyMap(arena), DirtyMap(arena)
    one.set(0, 3 * CHUNK)
    empty = one.__sizeof__()
    two.set(0, 3 * CHUNK)
    assert (arena.used, arena.fallbacks) == (4, 2)
    assert two.__sizeof__() - empty == 2 * 4176, "only what is in DRAM counts as memory"
    assert list(two.runs()) == [(0, 3 * CHUNK)] == list(one.runs())
    one.clear(0, 3 * CHUNK)
    assert arena.used == 1
    two.set(5 * CHUNK, 1)
    assert (arena.used, arena.fallbacks) == (2, 2), "a slot that came back is taken before memory"
    two.clear(0, 6 * CHUNK)
    assert arena.used == 0 and (outside(region, 4) == 0xEE).all()


def test_no_slot_at_all(region):
    arena = StateArena(region.address + AREA, SLOT - 1, region.table)
    dirty = DirtyMap(arena)
    dirty.set(3, 4)
    assert (arena.slots, arena.used, arena.fallbacks, dirty.count) == (0, 0, 1, 4)
    with pytest.raises(ValueError):
        StateArena(region.address + AREA + 8, SLOT, region.table)


@pytest.mark.parametrize("seed", range(4))
def test_mem_and_dev_behave_the_same(region, seed):
    """Two maps on an arena that is too small for both, each beside one in memory."""
    rng, arena = random.Random(seed), arena_of(region, 5)
    pairs = [(DirtyMap(), DirtyMap(arena)) for _ in range(2)]
    for _ in range(1500):
        mem, dev = rng.choice(pairs)
        first = max(rng.choice([0, 1, 2, 5, 9, 1 << 20]) * CHUNK + rng.randint(-70, 70), 0)
        count = rng.choice([1, 3, 64, 700, CHUNK, 2 * CHUNK + 1])
        change = rng.random() < 0.5
        for each in (mem, dev):
            (each.set if change else each.clear)(first, count)
        assert list(mem.runs()) == list(dev.runs())
        assert (mem.count, mem.chunks) == (dev.count, dev.chunks)
        assert mem.count_range(first, 1000) == dev.count_range(first, 1000)
    assert arena.fallbacks and arena.used + sum(dev.chunks for _, dev in pairs) > 0
    assert (outside(region, 5) == 0xEE).all()


def test_threads_share_the_slots(region):
    """Each map has one thread, as each inode has one lock; no slot is given twice and none is lost."""
    arena, wrong = arena_of(region, 6), []

    def work(n):
        dirty, rng = DirtyMap(arena), random.Random(n)
        for _ in range(4000):
            at = rng.randrange(4) * CHUNK + n
            dirty.set(at, 1)
            if next(dirty.runs())[0] % CHUNK != n:
                wrong.append(n)
            if rng.random() < 0.4:
                dirty.clear(0, 4 * CHUNK)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong and arena.used == 0 and (outside(region, 6) == 0xEE).all()


def test_after_kill_and_close_nothing_is_touched(kit):
    """EIO while the map lives; its end, after the memory is gone, gives the slots back in DRAM alone."""
    region = kit.sources(4 * MIB)
    arena = arena_of(region, 4)
    dirty, empty = DirtyMap(arena), DirtyMap(arena)
    dirty.set(0, 2 * CHUNK)
    region.kill()
    for call, *args in (
        (DirtyMap.set, 0, 1),
        (DirtyMap.clear, 0, 1),
        (DirtyMap.find_run, 0),
        (lambda each: list(each.runs()),),
        (DirtyMap.count_range, 0, 5),
        (DirtyMap.__contains__, 3),
    ):
        with pytest.raises(OSError) as caught:
            call(dirty, *args)
        assert caught.value.errno == errno.EIO
    empty.clear(0, 5)  # nothing is there: no question to the region
    region.close()  # unmaps: a touch would end the process
    assert dirty.count == 2 * CHUNK
    caught = None  # it holds the frames that hold the map
    del dirty, empty
    gc.collect()
    assert arena.used == 0


# -- with a file system ---------------------------------------------------------------------


def area(fs):
    first = fs.sb.map_pfn * PAGE
    return fs.region.array[first : first + fs.sb.map_pages * PAGE]


def test_a_region_made_with_map_dev_keeps_the_state_in_itself(kit):
    io = kit.io("cached", map_kind="dev")
    assert io.fs.sb.map == L.MAP_DEV and not area(io.fs).any()
    node = create(io, b"f")
    io.write(node, 0, noise(5 * PAGE))
    io.write(node, 0, noise(5 * PAGE))
    shown = io.snapshot()
    assert (shown["state"], shown["slots_used"], shown["fallbacks"]) == ("dev", 1, 0)
    assert shown["slots"] == io.fs.sb.map_pages * PAGE // SLOT > 30
    assert shown["dirty_bytes"] == 5 * PAGE and area(io.fs).any()
    assert io.fsync(node) == 5 and io.snapshot()["slots_used"] == 0
    file.truncate(io.fs, node, 0, 5)
    io.release(node)
    namespace.unlink(io.fs, 1, b"f")
    assert io.fs.region.table.users == 0


def test_map_mem_says_so_and_leaves_no_room(kit):
    io = kit.io("cached")
    shown = io.snapshot()
    assert [shown[k] for k in ("state", "slots", "slots_used", "fallbacks")] == ["mem", 0, 0, 0]
    assert io.fs.sb.map_pages == 0


def test_the_state_is_volatile(kit):
    """Never stored through the table, never flushed; a crash copy begins with all slots free."""
    io = kit.io("cached", map_kind="dev")
    node = create(io, b"f")
    io.write(node, 0, noise(3 * PAGE))
    low, high = io.fs.sb.map_pfn * PAGE, (io.fs.sb.map_pfn + io.fs.sb.map_pages) * PAGE
    with Recorder(io.fs.region, sites=False) as table:
        io.write(node, 0, noise(3 * PAGE))
        io.fsync(node)
        io.write(node, PAGE, b"dirty at the crash")
        touched = [e for e in calls(table) if e[0] != "drain" and e[1] < high and e[1] + e[2] > low]
    assert touched == []
    assert io.snapshot()["slots_used"] == 1
    crashed = kit.crashed(io)
    assert area(crashed.fs).any(), "the old bits are there"
    assert crashed.snapshot()["slots_used"] == 0
    again = reopen(crashed, node.ino)
    assert again.map.dirty.count == 0 and crashed.fsync(again) == 0


# -- extents: a bitmap of 256 bits in a slot ---------------------------------------------------


def in_slots(region, slots: int) -> int:
    """Bits that are set in the first words of the first *slots* slots, as they stand in the region."""
    words = [region.array[AREA + n * SLOT :][:32] for n in range(slots)]
    return int(sum(np.unpackbits(each).sum() for each in words))


def test_extents_stand_in_the_region_and_go_back(region):
    arena = arena_of(region, 2)
    extents = ExtentMap(4, arena)
    assert (arena.used, arena.fallbacks, extents.active) == (1, 0, 0)
    assert in_slots(region, 1) == 0 and (region.array[AREA + SLOT :] == 0xEE).all(), "zeroed, and no more"
    second, third = ExtentMap(4, arena), ExtentMap(4, arena)
    assert (arena.used, arena.fallbacks) == (2, 1), "DRAM serves, and it is counted"
    del extents, second, third
    gc.collect()
    assert arena.used == 0 and (outside(region, 2) == 0xEE).all() and region.table.users == 0
    region.kill()
    with pytest.raises(OSError) as caught:
        ExtentMap(4, arena)
    assert caught.value.errno == errno.EIO and arena.used == 0


def bits_of(io, *, of: int) -> int:
    """Bits that are set where the *of* slots of extents begin."""
    first = area(io.fs)
    return int(sum(np.unpackbits(first[n * SLOT :][:32]).sum() for n in range(of)))


@pytest.mark.parametrize("policy", ["extent", "extent+clear"])
def test_extents_of_a_mount(kit, policy):
    io = kit.io("cached", map_kind="dev")
    io.set_tracker(policy)
    node = create(io, b"f")
    io.write(node, 0, noise(5 * PAGE))
    shown = io.snapshot()
    assert (shown["state"], shown["slots_used"], shown["fallbacks"]) == ("dev", 1, 0)
    assert shown["active_extents"] == 0 == bits_of(io, of=1), "new blocks are stored past the cache"
    io.write(node, 0, noise(5 * PAGE))
    active = io.snapshot()["active_extents"]
    assert active and bits_of(io, of=1) == active
    area(io.fs)[:32] = 0  # the state is this one, and no copy in DRAM
    assert node.map.dirty_runs() == [] and node.map.dirty_bytes == 0
    area(io.fs)[:32] = 0xFF
    assert node.map.dirty_bytes == 5 * PAGE
    io.release(node)
    kept = (active, 256) if policy == "extent" else (0, 0)
    assert (io.snapshot()["active_extents"], bits_of(io, of=1)) == kept
    io.set_tracker("pte")
    del node  # of a closed file: it has the tracker that it had
    gc.collect()
    assert io.snapshot()["slots_used"] == 0 and io.fs.region.table.users == 0


def test_extents_of_own_ranges(pool_kit):
    io = pool_kit.io("cached", map_kind="dev")
    io.set_tracker("extent")
    nodes = [create(io, b"f%d" % n) for n in range(2)]
    for node in nodes:
        io.write(node, 0, noise(512 * PAGE))
        io.write(node, 0, noise(PAGE))
    assert io.snapshot()["slots_used"] == 3 and bits_of(io, of=3) == 2
    io.write(nodes[0], 512 * PAGE, noise(4096 * PAGE))
    io.write(nodes[0], 4607 * PAGE, b"x")
    assert nodes[0].map.dirty_runs() == [(0, 32 * PAGE), (4576 * PAGE, 32 * PAGE)], "doubled where they stand"
    assert io.snapshot()["slots_used"] == 3 and bits_of(io, of=3) == 3
    ino = nodes[1].ino
    io.release(nodes[1])
    namespace.unlink(io.fs, 1, b"f1")
    assert ino not in io.fs.nodes
    del nodes[1], node
    gc.collect()
    assert io.snapshot()["slots_used"] == 2, "back with the file"


@pytest.mark.parametrize("policy", ["extent", "extent+clear"])
def test_extents_are_volatile(kit, policy):
    """As bits of pages are: never stored through the table, never flushed, never read by another mount."""
    io = kit.io("cached", map_kind="dev")
    io.set_tracker(policy)
    node = create(io, b"f")
    io.write(node, 0, noise(3 * PAGE))
    low, high = io.fs.sb.map_pfn * PAGE, (io.fs.sb.map_pfn + io.fs.sb.map_pages) * PAGE
    with Recorder(io.fs.region, sites=False) as table:
        io.write(node, 0, noise(3 * PAGE))
        log = calls(table)
    assert not [e for e in log if e[0] != "drain" and e[1] < high and e[1] + e[2] > low]
    assert bits_of(io, of=1)
    crashed = kit.crashed(io)
    assert bits_of(crashed, of=1), "the old bits are there"
    crashed.set_tracker(policy)
    assert (crashed.snapshot()["active_extents"], bits_of(crashed, of=1)) == (0, 0)
    again = reopen(crashed, node.ino)
    assert not again.map.marked and crashed.fsync(again) == 0


def test_a_report_of_extents_when_the_region_is_gone(kit):
    """What DRAM has says it; what looks at marks is refused, and nothing is touched."""
    io = kit.io("cached", map_kind="dev")
    io.set_tracker("extent")
    node = create(io, b"f")
    io.write(node, 0, noise(3 * PAGE))
    io.write(node, 0, noise(3 * PAGE))
    before = io.snapshot()
    io.fs.region.kill()
    assert io.snapshot() == before and node.map.marked
    for look in (node.map.dirty_runs, lambda: node.map.dirty_bytes, lambda: node.map.mark(0, 1)):
        with pytest.raises(OSError) as caught:
            look()
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("seed", range(3))
def test_switches_between_all_policies_in_the_region(kit, pool_kit, seed):
    """What is dirty stays marked over any change; in the end all slots are back."""
    rng = random.Random(seed)
    for made in (kit, pool_kit):
        io = made.io("cached", map_kind="dev")
        node = create(io, b"f")
        io.write(node, 0, noise(100 * PAGE))
        io.fsync(node)
        dirty: set[int] = set()
        for _ in range(60):
            if rng.random() < 0.6:
                page = rng.randrange(100)
                io.write(node, page * PAGE + 7, b"x")
                dirty |= {page} if io.tracker.name != "none" else set()
            else:
                policy = rng.choice(POLICIES)
                io.set_tracker(policy)
                dirty = set() if policy == "none" else dirty
            found = {page for at, length in node.map.dirty_runs()
                     for page in range(at // PAGE, -(-(at + length) // PAGE))}
            assert dirty <= found
        io.set_tracker("none")
        gc.collect()
        assert io.snapshot()["slots_used"] == 0 == io.snapshot()["fallbacks"]


def test_more_files_than_slots(kit):
    io = kit.io("cached", map_kind="dev")
    slots = io.snapshot()["slots"]
    nodes = [create(io, b"f%d" % n) for n in range(slots + 3)]
    for node in nodes:
        io.write(node, 0, noise(PAGE))
        io.write(node, 7, b"over")
    shown = io.snapshot()
    assert (shown["slots_used"], shown["fallbacks"]) == (slots, 3)
    assert shown["dirty_bytes"] == (slots + 3) * PAGE
    assert [io.fsync(node) for node in nodes] == [1] * (slots + 3)
    assert io.snapshot()["slots_used"] == 0
    io.write(nodes[-1], 7, b"over")
    assert (io.snapshot()["slots_used"], io.snapshot()["fallbacks"]) == (1, 3)


def test_a_read_only_mount_uses_no_slots(kit):
    from daxfs.data.file_io import FileIo

    io = kit.io("cached", map_kind="dev")
    io.fs.readonly = True
    assert FileIo(io.fs).snapshot()["state"] == "mem"
    io.fs.readonly = False
