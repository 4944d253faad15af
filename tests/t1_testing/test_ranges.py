# SPDX-License-Identifier: MIT
"""The model of own ranges' files: what of names, lengths, zeros and data a crash may leave."""

import random

import pytest

from daxfs.errors import FormatError
from daxfs.testing import log
from daxfs.testing.log import OWN, Event
from daxfs.testing.media import Media
from daxfs.testing.ranges import Ranges, bytes_of

SIZE = 8192


def ranges(syncs=False, granularity="cache_line", room=1 << 16):
    return Ranges(Media(bytes(SIZE), granularity), syncs, room)


def tell(model, *texts):
    for text in texts:
        model.apply(Event(log.RANGE, 0, len(text), text.encode(), 1, 0, 0))


def store(model, pos, data, *, durable, place=OWN):
    model.apply(Event(log.NT_STORE, place + pos, len(data), data, 1, 0, 0))
    if durable:
        model.apply(Event(log.DRAIN, 0, 0, b"", 1, 0, 0))


def images(model, limit=64):
    """Every {name: bytes} that a crash now may leave."""
    found = []
    rng = random.Random(1)
    for image in model.media.images(limit, rng):
        for shape in model.shapes(rng, limit):
            one = {name: bytes(bytes_of(part, model.media.sure, [image.delta]))
                   for name, part in shape.items()}
            if one not in found:
                found.append(one)
    return found


def test_what_is_done_to_a_file_is_sure_at_once_where_nothing_is_lost():
    model = ranges()
    assert images(model) == [{}]
    tell(model, "create 2-1")
    assert images(model) == [{"2-1": b""}]
    tell(model, f"place 2-1 {OWN} 65536", "size 2-1 8192 0")
    assert images(model) == [{"2-1": bytes(8192)}]
    store(model, 8, b"12345678", durable=True)
    tell(model, "size 2-1 4096 0")
    assert images(model) == [{"2-1": bytes(8) + b"12345678" + bytes(4080)}]
    tell(model, "zero 2-1 12 100")
    assert images(model) == [{"2-1": bytes(8) + b"1234" + bytes(4084)}]
    tell(model, "unlink 2-1")
    assert images(model) == [{}]


def test_data_follow_the_rules_of_lines():
    model = ranges()
    tell(model, "create 2-1", f"place 2-1 {OWN} 65536", "size 2-1 4096 0")
    store(model, 0, b"a" * 16, durable=False)
    heads = {one["2-1"][:16] for one in images(model)}
    old, new = bytes(8), b"a" * 8
    assert heads == {old + old, old + new, new + old, new + new}
    tell(model, "zero 2-1 8 8")  # what is surely zeros no earlier store brings back
    assert {one["2-1"][:16] for one in images(model)} == {old + old, new + old}


@pytest.mark.parametrize("granularity", ["cache_line", "byte", "page"])
def test_without_a_sync_names_lengths_and_zeros_are_open(granularity):
    model = ranges(syncs=True, granularity=granularity)
    tell(model, "create 2-1")
    assert images(model) == [{}, {"2-1": b""}]
    tell(model, "sync", f"place 2-1 {OWN} 65536", "size 2-1 4096 0", "size 2-1 8192 0")
    assert {len(one["2-1"]) for one in images(model)} == {0, 4096, 8192}
    tell(model, "sync 2-1 0 0")
    store(model, 0, b"a" * 512, durable=True)
    tell(model, "sync 2-1 0 0")
    tell(model, "zero 2-1 0 512")
    found = {one["2-1"][:512] for one in images(model, 1000)}
    assert {bytes(512), b"a" * 512} <= found
    tell(model, "sync 2-1 0 0")
    assert images(model) == [{"2-1": bytes(8192)}]
    tell(model, "unlink 2-1")
    assert images(model) == [{"2-1": bytes(8192)}, {}]
    tell(model, "sync")
    assert images(model) == [{}]


def test_a_cut_may_be_undone_until_it_is_synced():
    model = ranges(syncs=True)
    tell(model, "create 2-1", "sync", f"place 2-1 {OWN} 65536", "size 2-1 8192 0", "sync 2-1 0 0")
    store(model, 4096, b"b" * 8, durable=True)
    tell(model, "size 2-1 4096 0", "size 2-1 8192 0")
    tails = {one["2-1"][4096:4104] for one in images(model, 400)}
    assert tails == {b"", bytes(8), b"b" * 8}
    tell(model, "sync 2-1 0 0")
    assert {one["2-1"][4096:4104] for one in images(model)} == {bytes(8)}


def test_a_new_file_has_nothing_of_an_old_one():
    model = ranges()
    tell(model, "create 2-1", f"place 2-1 {OWN} 65536", "size 2-1 4096 0")
    store(model, 0, b"x" * 4096, durable=False)
    tell(model, "unlink 2-1", "create 3-1", f"place 3-1 {OWN} 65536", "size 3-1 4096 0")
    assert images(model) == [{"3-1": bytes(4096)}]


def test_after_a_crash_the_files_are_what_it_left():
    model = ranges(syncs=True)
    tell(model, "create 2-1", "sync", f"place 2-1 {OWN} 65536", "size 2-1 8192 0", "sync 2-1 0 0")
    tell(model, "create 3-1")
    store(model, 0, b"x" * 8192, durable=True)
    tell(model, "size 2-1 4096 0")
    shape = model.shapes(random.Random(1))[0]
    assert {name: one.size for name, one in shape.items()} == {"2-1": 8192}
    media = Media(model.media.sure, "cache_line")
    after = model.crashed(media, shape)
    assert images(after) == [{"2-1": b"x" * 8192}]
    with pytest.raises(FormatError, match="no range has"):
        store(after, 0, b"y", durable=True)  # its place is to be told anew


@pytest.mark.parametrize("text", ["unlink 2-1", "size 2-1 4096 0", "create", "size 3-1", "grow 3-1 1",
                                  "size 3-1 x", "size 3-1 1000000 0", ""])  # fmt: skip
def test_what_can_not_be_is_refused(text):
    model = ranges()
    tell(model, "create 3-1")
    with pytest.raises(FormatError):
        tell(model, text)


def test_a_store_outside_every_file_is_refused():
    model = ranges()
    tell(model, "create 2-1", f"place 2-1 {OWN} 65536", "size 2-1 4096 0")
    for pos, why in ((4090, "behind its end"), (65536, "no range has")):
        with pytest.raises(FormatError, match=why):
            store(model, pos, b"12345678", durable=False)
    tell(model, "create 3-1", f"place 3-1 {OWN} 65536", "size 3-1 4096 0")  # 2-1 was closed
    store(model, 0, b"3", durable=True)
    assert images(model)[0] == {"2-1": bytes(4096), "3-1": b"3" + bytes(4095)}
