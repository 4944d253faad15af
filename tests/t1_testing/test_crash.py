# SPDX-License-Identifier: MIT
"""crash_test and crash_points: that all moments are there, that bugs are found, and that nothing leaks."""

import os
import struct
import threading

import pytest

from daxfs.testing import crash_points, crash_test
from daxfs.testing.log import BEGIN, DRAIN, END, FLUSH, NT_STORE, SITE, STORE, Event

SIZE = 16384
ONE = struct.pack("<Q", 1)


def ev(kind, place=0, data=b"", length=0, op=0, thread=0):
    return Event(kind, place, len(data) or length, data, thread, 0, op)


def word(region, place):
    return struct.unpack_from("<Q", region.mem, place)[0]


def put(region, place, value):
    region.store(place, struct.pack("<Q", value))


def sure(region, place, value):
    put(region, place, value)
    # Order: this word before all that follows; these tests are about who forgets that.
    region.persist(place, 8)


# ---- the moments


def moments(events, granularity="cache_line"):
    return [(p.what, list(p.returned.values()), list(p.in_flight.values()))
            for p in crash_points(events, bytes(8192), granularity)]


LOG = [ev(SITE, data=b"x"), ev(BEGIN, data=b"a", op=1), ev(STORE, 0, ONE, op=1), ev(FLUSH, length=8, op=1),
       ev(DRAIN, op=1), ev(END, op=1), ev(BEGIN, data=b"b", op=2), ev(NT_STORE, 64, ONE, op=2)]


def test_moments():
    assert moments(LOG) == [("before drain #4", [], ["a"]), ("when 'a' had returned", ["a"], []),
                            ("at the end", ["a"], ["b"])]
    assert moments([]) == [("at the end", [], [])]
    assert moments(LOG[:6])[-1] == ("when 'a' had returned", ["a"], [])


def test_moments_of_pages():
    """A flush makes sure there, and so does an nt store when it is over; a drain is nothing."""
    log = [*LOG, ev(FLUSH, length=8, op=2), ev(NT_STORE, 0, ONE, op=2), ev(STORE, 64, ONE), ev(DRAIN)]
    assert [what for what, *_ in moments(log, "page")] == [
        "before flush #3", "when 'a' had returned", "before flush #8", "during nt_store #9", "at the end"]
    assert [int(point.media.sure[64]) for point in crash_points(log, bytes(8192), "page")] == [0, 0, 0, 1, 1]


def test_moments_of_threads():
    log = [ev(BEGIN, data=b"a", op=1), ev(BEGIN, data=b"b", op=2, thread=1), ev(DRAIN),
           ev(END, op=2, thread=1), ev(END, op=1)]
    assert moments(log) == [("before drain #2", [], ["a", "b"]), ("when 'b' had returned", ["b"], ["a"]),
                            ("when 'a' had returned", ["b", "a"], [])]


def test_media_is_as_of_the_moment():
    for point in crash_points(LOG, bytes(128)):
        assert (bytes(point.media.sure[:8]) == ONE) == bool(point.returned)
        assert point.media.number == point.number


# ---- programs


def two_words(first, second):
    """A program that sets a word at 0, then one at 64, in the ways given; the second stands for the first."""

    def program(region, op):
        with op("both"):
            first(region, 0, 1)
            second(region, 64, 1)

    return program


def need(condition, text):
    """An assertion whose text pytest does not add to."""
    if not condition:
        raise AssertionError(text)


def check_two(region, returned, in_flight):
    need(in_flight in ([], ["both"]), "other operations")
    need(word(region, 64) <= word(region, 0), "the second without the first")
    need(not returned or word(region, 64) == 1, "returned and not there")


def nt(region, place, value):
    region.nt_store(place, struct.pack("<Q", value))


def flushed(region, place, value):
    put(region, place, value)
    region.flush_range(place, 8)


def test_right_order():
    result = crash_test(two_words(sure, sure), check_two, size=SIZE)
    assert result.ok and not result.violations and not result.costs and result.images == 5
    assert str(result) == "5 crash images at 3 moments, 0 violations (cache_line, seed 0)"


@pytest.mark.parametrize("first", (put, flushed, nt), ids=lambda f: f.__name__)
def test_wrong_order(first):
    result = crash_test(two_words(first, sure), check_two, size=SIZE)
    assert not result.ok
    shown = result.violations[0]
    assert shown.what.startswith("before drain") and shown.in_flight == ["both"] and shown.returned == []
    assert str(shown.error) == "the second without the first" and "need: raise AssertionError" in shown.where
    lines = shown.lines.splitlines()
    assert [line.split()[0] for line in lines[::2]] == ["missing", "there"]
    assert f" {first.__name__} < " in lines[1] and " sure < " in lines[3] and "crash.py:" in lines[1]
    numbers = [line.split()[1] for line in lines[::2]]
    assert shown.order == f"so {numbers[1]} reached the media before {numbers[0]}"
    assert shown.lines in str(result).replace("\n    ", "\n") and shown.order in str(result)


def test_not_durable_on_return():
    result = crash_test(two_words(sure, flushed), check_two, size=SIZE)
    (violation,) = result.violations
    assert violation.what == "when 'both' had returned" and violation.returned == ["both"]
    assert str(violation.error) == "returned and not there" and violation.order == ""


def test_granularities():
    """Program order is enough where caches survive; with pages each flush is sure at once."""
    assert not crash_test(two_words(flushed, sure), check_two, size=SIZE).ok
    assert crash_test(two_words(put, sure), check_two, size=SIZE, granularity="byte").ok
    assert not crash_test(two_words(nt, sure), check_two, size=SIZE, granularity="byte").ok
    assert crash_test(two_words(nt, nt), check_two, size=SIZE, granularity="page").ok
    assert not crash_test(two_words(nt, put), check_two, size=SIZE, granularity="page").ok


def test_costs_are_of_the_program():
    result = crash_test(two_words(sure, put), lambda *_: None, size=SIZE)
    assert result.ok and [(row.kind, row.count) for row in result.costs] == [("store never flushed", 1)]
    assert " put < " in result.costs[0].site and "testing/crash.py" not in str(result)
    assert not crash_test(two_words(sure, put), lambda *_: None, size=SIZE, expected=lambda event: True).costs


def test_the_same_seed_is_the_same_test():
    def program(region, op):
        with op("many"):
            for i in range(20):
                nt(region, 64 * i, i + 1)

    def check(region, returned, in_flight):
        need(word(region, 64) or not word(region, 64 * 9), "9 without 1")

    results = [crash_test(program, check, size=SIZE, seed=seed) for seed in (1, 1, 2)]
    assert results[0].failed == results[1].failed and str(results[0]) == str(results[1])
    assert results[0].failed > 1 and results[2].failed > 0
    number = results[0].violations[0].number
    with pytest.raises(AssertionError):
        crash_test(program, check, size=SIZE, seed=1, only=number)
    good = next(n for n in range(number + 1) if n != number)
    assert crash_test(program, check, size=SIZE, seed=1, only=good).failed == 0
    with pytest.raises(ValueError, match="no image 1000000"):
        crash_test(program, check, size=SIZE, only=1000000)


def test_least_is_missing():
    """Of twenty lines in flight, only those show as missing that must be for the check to fail."""

    def program(region, op):
        for i in range(20):
            nt(region, 64 * i, i + 1)

    def check(region, returned, in_flight):
        assert word(region, 64) or not word(region, 64 * 9)

    result = crash_test(program, check, size=SIZE)
    for violation in result.violations:
        states = [line.split()[0] for line in violation.lines.splitlines() if "#" in line]
        assert sorted(states) == ["missing"] + ["there"] * 19


def test_setup_is_there_and_checks_leave_nothing():
    def setup(region):
        put(region, 4096, 7)

    def program(region, op):
        assert word(region, 4096) == 7
        with op(("add", 5)):
            sure(region, 8192, 5)

    seen = []

    def check(region, returned, in_flight):
        assert word(region, 4096) == 7 and word(region, 0) == 0
        seen.append((returned, in_flight, word(region, 8192)))
        sure(region, 0, 99)  # would be seen by the next check
        region.mem[4096] = 1

    result = crash_test(program, check, size=SIZE, setup=setup)
    assert result.ok and result.images == len(seen)
    add = [("add", 5)]
    assert ([], add, 0) in seen and ([], add, 5) in seen and (add, [], 5) in seen and (add, [], 0) not in seen


def descriptors():
    """Those of scratch memory that are still open."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.lexists(link) and "daxfs-crash" in os.readlink(link)]


def test_a_program_that_fails():
    def program(region, op):
        with op("half"):
            sure(region, 0, 1)
            raise KeyError("of the program")

    with pytest.raises(KeyError, match="of the program"):
        crash_test(program, lambda *_: None, size=SIZE)
    assert descriptors() == []


def test_any_exception_of_a_check_is_a_violation():
    def check(region, returned, in_flight):
        held = region.array  # a view that the exception's frames hold
        raise struct.error(f"torn {held[0]}")

    result = crash_test(two_words(sure, sure), check, size=SIZE)
    assert result.failed == result.images == 5 and descriptors() == []
    assert len(result.violations) <= 5 and "error: torn" in str(result)


def test_threads():
    def program(region, op):
        def work(number):
            for value in range(1, 4):
                with op((number, value)):
                    sure(region, 4096 * number, value)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def check(region, returned, in_flight):
        for number in range(2):
            done = max((value for n, value in returned if n == number), default=0)
            open_ = [value for n, value in in_flight if n == number]
            assert word(region, 4096 * number) in [done, *open_]

    assert crash_test(program, check, size=SIZE).ok


# ---- recovery


A, B, LOG_A, LOG_B, FLAG = 0, 64, 4096, 4104, 8192


def transfer(region, op):
    """Moves between two accounts by way of a log of the new values."""
    for amount in (3, 4):
        with op(("move", amount)):
            a, b = word(region, A) - amount, word(region, B) + amount
            region.nt_store(LOG_A, struct.pack("<QQ", a, b))
            # Order: the log before the flag that makes it count.
            region.drain()
            sure(region, FLAG, 1)
            flushed(region, A, a)
            sure(region, B, b)
            sure(region, FLAG, 0)


def redo(region):
    if word(region, FLAG):
        flushed(region, A, word(region, LOG_A))
        sure(region, B, word(region, LOG_B))
        sure(region, FLAG, 0)


def hasty_redo(region):
    """Wrong only if power fails again: the flag may go before the words are there."""
    if word(region, FLAG):
        flushed(region, A, word(region, LOG_A))
        flushed(region, B, word(region, LOG_B))
        sure(region, FLAG, 0)


def check_accounts(region, returned, in_flight):
    assert word(region, A) + word(region, B) == 100, f"{word(region, A)} and {word(region, B)}"
    moved = sum(amount for _, amount in returned)
    assert word(region, B) - moved in (0, *(amount for _, amount in in_flight))


def accounts(recover, **options):
    return crash_test(transfer, check_accounts, size=SIZE, setup=lambda region: put(region, A, 100),
                      recover=recover, **options)


def test_recovery():
    result = accounts(redo)
    assert result.ok and result.images > accounts(redo, nested=0).images
    assert not accounts(None).ok


def test_power_fails_during_recovery():
    assert accounts(hasty_redo, nested=0).ok
    result = accounts(hasty_redo)
    assert not result.ok
    violation = result.violations[0]
    assert "when power failed again" in violation.lines and " hasty_redo" in violation.lines
    with pytest.raises(AssertionError):
        accounts(hasty_redo, only=violation.number)
