# SPDX-License-Identifier: MIT
"""The persistence model: what the processor manuals promise, case by case, and against a brute-force machine.

Each hand-made case is a tiny log and the exact set of contents that a power failure may leave. Pictures are
words: one letter for eight equal bytes, ``.`` for what was there before.
"""

import random
from itertools import product

import machine
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.testing.log import DRAIN, FLUSH, IMAGE, NT_FILL, NT_STORE, SCAN, SITE, STORE, Event
from daxfs.testing.media import Media

LINE, WORD, PAGE, SECTOR = 64, 8, 4096, 512


def put(kind, place, data, thread=0):
    return Event(kind, place, len(data), data, thread, 0, 0)


def store(place, data, thread=0):
    return put(STORE, place, data, thread)


def nt(place, data, thread=0):
    return put(NT_STORE, place, data, thread)


def scan(place, data, thread=0):
    return put(SCAN, place, data, thread)


def fill(place, byte, length, thread=0):
    return Event(NT_FILL, place, length, byte, thread, 0, 0)


def flush(place, length, thread=0):
    return Event(FLUSH, place, length, b"", thread, 0, 0)


def drain(thread=0):
    return Event(DRAIN, 0, 0, b"", thread, 0, 0)


def play(events, size=2 * LINE, **options):
    media = Media(b"." * size, **options)
    for event in events:
        media.apply(event)
    return media


def whole(media, image):
    content = bytearray(media.sure)
    for place, data in image.delta:
        content[place : place + len(data)] = data
    return bytes(content)


def contents(media, limit=100000, seed=0):
    """The images as bytes; no two of them may be the same."""
    found = [whole(media, image) for image in media.images(limit, random.Random(seed))]
    assert len(found) == len(set(found)) <= limit
    return set(found)


def words(events, at=(0, 1, 2), **options):
    """The possible contents, as one letter for each of the words *at*; all other bytes stay as they were."""
    media = play(events, **options)
    found = set()
    for content in contents(media):
        picture = "".join(chr(content[w * WORD]) for w in at)
        assert all(content[w * WORD : w * WORD + WORD] == content[w * WORD : w * WORD + 1] * WORD for w in at)
        rest = [b for i, b in enumerate(content) if i // WORD not in at]
        assert rest == [ord(".")] * len(rest)
        found.add(picture)
    return found


def word(letter, count=1):
    return letter.encode() * (WORD * count)


A, B, C, D = (word(letter) for letter in "abcd")

# ---- SDM vol. 3, memory ordering: stores of one processor are seen in program order; one line, one cache


def test_two_stores_to_a_line_keep_their_order():
    log = [store(0, A), store(8, B)]
    assert words(log, torn=False) == {"...", "a..", "ab."}


def test_a_torn_write_back_mixes_words():
    """Only eight bytes are written as one: the second store may then be there without the first."""
    log = [store(0, A), store(8, B)]
    assert words(log) == {"...", "a..", ".b.", "ab."}


def test_a_torn_write_back_mixes_two_points():
    log = [store(0, A), store(8, B), store(0, C), store(8, D)]
    assert words(log, torn=False) == {"...", "a..", "ab.", "cb.", "cd."}
    assert words(log) == {"".join(p) + "." for p in product(".ac", ".bd")}


def test_three_points_are_never_seen_at_once():
    """Points are ... a.. aa. aaa baa bba bbb cbb ccb ccc: what follows takes two of them, then three."""
    log = [store(0, A), store(8, A), store(16, A)]
    log += [store(0, B), store(8, B), store(16, B), store(0, C), store(8, C), store(16, C)]
    found = words(log)
    assert {"abb", "aab", "acc", "bbc", "..c", "cba"} <= found
    assert not {"abc", ".ab", ".bc"} & found


def test_words_of_a_long_store_have_no_order():
    log = [store(0, A + B)]
    both = {"...", "a..", ".b.", "ab."}
    assert words(log) == words(log, torn=False) == both
    assert words([store(0, A + B), store(16, C)], torn=False) == both | {"abc"}


def test_lines_have_no_order():
    log = [store(0, A), store(LINE, B)]
    assert words(log, at=(0, 8)) == {"..", "a.", ".b", "ab"}


def test_nothing_stored():
    assert words([]) == words([drain(), flush(0, 128), drain()]) == {"..."}


# ---- clwb, clflushopt: written back from now on; sfence: before any later store


def test_flush_alone_promises_nothing():
    assert words([store(0, A), flush(0, 8)]) == {"...", "a.."}


def test_drain_alone_promises_nothing_of_an_ordinary_store():
    assert words([store(0, A), drain()]) == {"...", "a.."}


def test_flush_and_drain():
    assert words([store(0, A), flush(0, 8), drain()]) == {"a.."}


def test_flush_before_the_store_does_not_help():
    assert words([flush(0, 8), store(0, A), drain()]) == {"...", "a.."}


def test_drain_before_the_flush_does_not_help():
    assert words([store(0, A), drain(), flush(0, 8)]) == {"...", "a.."}


def test_store_behind_the_flush_is_optional():
    assert words([store(0, A), flush(0, 8), store(8, B), drain()]) == {"a..", "ab."}
    assert words([store(0, A), flush(0, 8), store(0, B), drain()]) == {"a..", "b.."}


def test_store_flush_store_flush_drain():
    log = [store(0, A), flush(0, 8), store(8, B), flush(8, 8)]
    assert words(log, torn=False) == {"...", "a..", "ab."}
    assert words([*log, drain()]) == {"ab."}


def test_flush_takes_the_whole_line_and_no_other():
    log = [store(0, A), store(56, B), store(64, C)]
    assert words([*log, flush(30, 1), drain()], at=(0, 7, 8)) == {"ab.", "abc"}
    assert words([*log, flush(63, 2), drain()], at=(0, 7, 8)) == {"abc"}


def test_empty_flush():
    assert words([store(0, A), flush(0, 0), drain()]) == {"...", "a.."}


def test_a_fence_is_for_its_own_thread():
    log = [store(0, A), flush(0, 8, thread=0)]
    assert words([*log, drain(thread=1)]) == {"...", "a.."}
    assert words([*log, drain(thread=1), drain(thread=0)]) == {"a.."}


def test_a_thread_flushes_what_others_stored():
    """clwb writes the line back from whatever cache of the coherence domain holds it."""
    assert words([store(0, A, thread=1), flush(0, 8, thread=0), drain(thread=0)]) == {"a.."}


def test_flushes_of_two_threads_do_not_add_up():
    log = [store(0, A), flush(0, 8, thread=0), store(8, B), flush(0, 8, thread=1)]
    assert words([*log, drain(thread=0)]) == {"a..", "ab."}
    assert words([*log, drain(thread=1)]) == {"ab."}


def test_a_drain_uses_a_flush_up():
    assert words([store(0, A), flush(0, 8), drain(), store(0, B), drain()]) == {"a..", "b.."}


# ---- non-temporal stores are weakly ordered; sfence of the thread that stored them


def test_nt_words_have_no_order():
    log = [nt(0, A + B), nt(16, C)]
    assert words(log) == words(log, torn=False) == {"".join(p) for p in product(".a", ".b", ".c")}
    assert words([*log, drain(thread=1)]) == words(log)
    assert words([*log, drain()]) == {"abc"}


def test_flush_does_not_wait_for_nt_stores():
    """clwb finds nothing in the caches; the data are in a buffer of another processor."""
    log = [nt(0, A, thread=1), flush(0, 8, thread=0), drain(thread=0)]
    assert words(log) == {"...", "a.."}


def test_nt_over_an_unflushed_store():
    log = [store(0, A + B), nt(0, C)]
    assert words(log) == {"".join(p) + "." for p in product(".ac", ".b")}
    assert words([*log, drain()]) == {"c..", "cb."}  # a can't come back over c


def test_store_over_an_nt_store():
    log = [nt(0, A), store(0, B)]
    assert words(log) == {"...", "a..", "b.."}
    assert words([*log, drain()]) == {"a..", "b.."}
    assert words([*log, flush(0, 8), drain()]) == {"b.."}


def test_nt_of_another_thread_never_comes_back():
    log = [nt(0, A, thread=0), nt(0, B, thread=1), drain(thread=1)]
    assert words(log) == {"b.."}
    log = [nt(0, A, thread=0), store(0, B, thread=1), flush(0, 8, thread=1), drain(thread=1)]
    assert words(log) == {"b.."}


def test_nt_fill():
    assert words([fill(0, b"z", 24)]) == {"".join(p) for p in product(".z", repeat=3)}
    assert words([fill(0, b"z", 24), drain()]) == {"zzz"}


def test_part_of_a_word_is_atomic():
    """Five bytes across a word's end: two and three, either of them alone."""
    media = play([store(6, b"abcde")], size=LINE)
    dots = b"." * 64
    assert contents(media) == {dots, b"......ab" + dots[8:], b"........cde" + dots[11:],
                               b"......abcde" + dots[11:]}


def test_two_stores_into_one_word():
    media = play([store(0, b"aa"), store(1, b"bb")], size=LINE)
    tail = b"." * 61
    assert contents(media) == {b"..." + tail, b"aa." + tail, b"abb" + tail}


def test_nt_into_part_of_an_unflushed_word():
    log = [store(0, b"aaaa"), nt(2, b"bbbb"), drain()]
    tail = b"." * 58
    assert contents(play(log, size=LINE)) == {b"..bbbb" + tail, b"aabbbb" + tail}


def test_edges_of_a_line():
    """A store over a line's end: the flush of one line leaves the other part open."""
    log = [store(60, b"aaaabbbb"), flush(60, 4), drain()]
    left, right = b"." * 60 + b"aaaa", b"." * 60
    assert contents(play(log)) == {left + b"...." + right, left + b"bbbb" + right}
    last = play([store(127, b"x"), flush(127, 1), drain()])
    assert contents(last) == {b"." * 127 + b"x"}


# ---- what a scan of a client's mapping found: stores, nobody knows in which order


def test_scan_words_have_no_order():
    log = [scan(0, A + B)]
    assert words(log, torn=False) == {"...", "a..", ".b.", "ab."}
    assert words([*log, drain()]) == words(log)
    assert words([*log, flush(0, 64), drain(thread=1)]) == words(log)
    assert words([*log, flush(0, 64), drain()]) == {"ab."}


# ---- flush on power failure (eADR): durable once visible


def test_byte_is_a_prefix_of_the_log():
    log = [store(0, A), store(LINE, B), store(8, C)]
    assert words(log, at=(0, 1, 8), granularity="byte") == {"...", "a..", "a.b", "acb"}
    assert words([*log, flush(0, 128)], at=(0, 1, 8), granularity="byte") == {"...", "a..", "a.b", "acb"}


def test_byte_drain_makes_visible():
    log = [store(0, A), store(8, B, thread=1), drain(thread=1), store(16, C, thread=0)]
    assert words(log, granularity="byte") == {"ab.", "abc"}
    assert words([*log[:2], drain(thread=0)], granularity="byte") == {"a..", "ab."}


def test_byte_long_store_is_partial():
    log = [store(0, A + B), store(16, C)]
    assert words(log, granularity="byte") == {"...", "a..", ".b.", "ab.", "abc"}


def test_byte_nt_still_needs_its_drain():
    log = [store(0, A), nt(8, B), store(16, C)]
    assert words(log, granularity="byte") == {
        "...", "a..", "a.c", ".b.", "ab.", "abc"}  # fmt: skip
    assert words([*log, drain()], granularity="byte") == {"abc"}
    assert words([nt(0, A, thread=1), store(0, B), drain()], granularity="byte") == {"b.."}


# ---- page cache over a disk


def sectors(events, at, pages=2, **options):
    """As words, for sectors."""
    media = play(events, size=pages * PAGE, granularity="page", **options)
    return {"".join(chr(c[s * SECTOR]) for s in at) for c in contents(media)}


S, T, U = (letter * SECTOR for letter in (b"s", b"t", b"u"))


def test_page_flush_is_sure_at_once():
    log = [store(0, S), store(SECTOR, T), store(PAGE, U)]
    assert sectors(log, (0, 1, 8), torn=False) == {a + b for a in ("..", "s.", "st") for b in ".u"}
    assert sectors(log, (0, 1, 8)) == {"".join(p) for p in product(".s", ".t", ".u")}
    assert sectors([*log, drain()], (0, 1, 8)) == sectors(log, (0, 1, 8))
    assert sectors([*log, flush(1, 1, thread=1)], (0, 1, 8)) == {"st.", "stu"}


def test_page_nt_is_sure_with_the_next_event():
    log = [store(2 * SECTOR, U), nt(0, S + T)]
    assert sectors(log, (0, 1, 2)) == {"".join(p) for p in product(".s", ".t", ".u")}
    assert sectors([*log, drain(thread=5)], (0, 1, 2)) == {"stu"}  # its msync took the page as it was
    assert sectors([fill(0, b"z", 2 * PAGE), flush(0, 0)], (0, 7, 8, 15)) == {"zzzz"}


def test_page_sector_is_atomic():
    media = play([store(SECTOR - 1, b"ab")], size=PAGE, granularity="page")
    assert len(contents(media)) == 4
    media = play([store(3, b"abc")], size=PAGE, granularity="page")
    assert len(contents(media)) == 2


# ---- the object


def test_image_and_changed():
    media = Media(bytes(4 * LINE))
    media.apply(put(IMAGE, LINE, b"i" * LINE))
    assert media.changed == {1} and bytes(media.sure[LINE : 2 * LINE]) == b"i" * LINE
    media.changed.clear()
    for event in (store(0, A), nt(2 * LINE, A), flush(0, 8)):
        media.apply(event)
    assert not media.changed
    media.apply(drain())
    assert media.changed == {0, 2} and media.number == 5


def test_wrong_arguments():
    with pytest.raises(ValueError, match="granularity"):
        Media(bytes(64), "line")
    with pytest.raises(ValueError, match="units"):
        Media(bytes(65))
    with pytest.raises(ValueError, match="outside"):
        Media(bytes(64)).apply(store(60, A))
    with pytest.raises(ValueError, match="limit"):
        Media(bytes(64)).images(0, random.Random(0))


def test_images_outlive_the_moment():
    """An iterator shows the moment at which it was made, whatever happens later."""
    media = play([store(0, A)])
    before = media.images(10, random.Random(0))
    for event in (store(0, B), flush(0, 8), drain()):
        media.apply(event)
    assert [image.delta for image in before] == [[], [(0, A)]]


MANY = [nt(i * LINE, bytes([i + 1]) * LINE) for i in range(20)]


def test_sample_has_each_line_alone():
    media = play(MANY, size=32 * LINE)
    found = contents(media, limit=200)
    assert len(found) == 200
    full = b"".join(bytes([i + 1]) * LINE for i in range(20)) + b"." * (12 * LINE)
    none = b"." * (32 * LINE)
    assert full in found and none in found
    for i in range(20):
        a, b = i * LINE, (i + 1) * LINE
        assert full[:a] + none[a:b] + full[b:] in found
        assert none[:a] + full[a:b] + none[b:] in found
    torn = [c for c in found if any(len(set(c[i : i + LINE])) > 1 for i in range(0, 32 * LINE, LINE))]
    assert len(torn) > 20


def test_sample_spends_nothing_on_lines_that_do_not_change():
    """A scan brings whole pages of which little is new: each new line alone is still among the images."""
    new = range(1, 30, 3)
    media = play([scan(0, b"." * (32 * LINE)), *(nt(n * LINE, A * 8) for n in new)], size=32 * LINE)
    found = [tuple(c[n * LINE : n * LINE + LINE] == A * 8 for n in new) for c in contents(media, limit=23)]
    for n in range(len(new)):
        assert tuple(m == n for m in range(len(new))) in found
        assert tuple(m != n for m in range(len(new))) in found


@pytest.mark.parametrize("limit", (1, 2, 3, 10, 33))
def test_sample_obeys_the_limit(limit):
    assert len(contents(play(MANY, size=32 * LINE), limit)) == limit


def test_same_seed_same_images():
    one, other = play(MANY, size=32 * LINE), play(MANY, size=32 * LINE)
    deltas = [[image.delta for image in media.images(50, random.Random(7))] for media in (one, other)]
    assert deltas[0] == deltas[1]
    assert deltas[0] != [image.delta for image in one.images(50, random.Random(8))]


def test_sample_of_many_stores_to_one_word():
    """No end of values for one word: each image shows one of them."""
    log = [store(0, n.to_bytes(8, "little")) for n in range(1, 500)]
    found = contents(play(log, size=LINE), limit=64)
    assert len(found) == 64 and all(c[8:] == b"." * 56 for c in found)


def test_few_contents_of_many_stores():
    """A hundred stores of the same value make two contents; sampling must end."""
    assert len(contents(play([store(0, A)] * 100, size=LINE), limit=50)) == 2


def test_describe():
    log = [Event(SITE, 0, 0, b"ring.py:31 push", 0, 1, 0), store(0, A)._replace(site=1), flush(0, 8),
           nt(LINE - 8, A + B), nt(2 * LINE, A + B), nt(3 * LINE, A), store(3 * LINE, B)]
    media = play(log, size=4 * LINE)
    wanted = [(56, A), (2 * LINE + 8, B), (3 * LINE, B)]
    (image,) = [i for i in media.images(1000, random.Random(0)) if i.delta == wanted]
    assert image.describe() == """\
missing   #1 store of 8 bytes at 0x0, flushed
          ring.py:31 push
partly    #3 nt_store of 16 bytes at 0x38: there 0x38-0x3f; missing 0x40-0x47
torn      #4 nt_store of 16 bytes at 0x80: there 0x88-0x8f; missing 0x80-0x87
overtaken #5 nt_store of 8 bytes at 0xc0
there     #6 store of 8 bytes at 0xc0, not flushed"""
    assert "\n          elsewhere\n" in image.describe({1: "elsewhere"})
    images = play(log, size=4 * LINE, granularity="byte").images(1000, random.Random(0))
    assert not any("flushed" in image.describe() for image in images)
    (image,) = play([]).images(5, random.Random(0))
    assert image.delta == [] and image.describe() == "nothing was in flight"


# ---- against the brute-force machine


def tiny_logs(unit, atom):
    """Logs of up to six events on three words (sectors) of two lines (pages), half words too."""
    half = atom // 2
    places = st.sampled_from([0, atom, unit - atom, unit])
    threads = st.integers(0, 1)
    spans = st.sampled_from([(0, atom), (0, half), (half, half), (0, 2 * atom), (half, atom)])
    stores = st.tuples(st.sampled_from([STORE, STORE, NT_STORE, SCAN]), places, spans, threads)
    lengths = st.sampled_from([(0, unit), (0, 2 * unit)])
    flushes = st.tuples(st.just(FLUSH), st.sampled_from([0, unit]), lengths, threads)
    drains = st.tuples(st.just(DRAIN), st.just(0), st.just((0, 0)), threads)
    return st.lists(st.one_of(stores, stores, flushes, drains), max_size=6)


def events_of(recipe, size):
    events = []
    for number, (kind, place, (shift, wanted), thread) in enumerate(recipe):
        start = place + shift
        length = min(wanted, size - start)
        data = b"" if kind in (FLUSH, DRAIN) else bytes([65 + number]) * length
        events.append(Event(kind, start, length, data, thread, 0, 0))
    return [e for e in events if e.data or e.kind in (FLUSH, DRAIN)]


@pytest.mark.parametrize("granularity, torn", [
    ("cache_line", True), ("cache_line", False), ("byte", True), ("page", True), ("page", False)])
def test_against_the_machine(granularity, torn):
    unit, atom = (PAGE, SECTOR) if granularity == "page" else (LINE, WORD)

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(tiny_logs(unit, atom))
    def check(recipe):
        events = events_of(recipe, 2 * unit)
        media = play(events, size=2 * unit, granularity=granularity, torn=torn)
        brute = machine.Machine(b"." * (2 * unit), events, granularity, torn, unit, atom)
        assert contents(media) == brute.contents()

    check()


@pytest.mark.parametrize("granularity", ("cache_line", "byte", "page"))
def test_samples_are_possible(granularity):
    """Whatever a limit leaves over is one of the possible contents."""
    unit, atom = (PAGE, SECTOR) if granularity == "page" else (LINE, WORD)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(tiny_logs(unit, atom), st.integers(1, 12), st.integers(0, 3))
    def check(recipe, limit, seed):
        media = play(events_of(recipe, 2 * unit), size=2 * unit, granularity=granularity)
        every, some = contents(media), contents(media, limit, seed)
        assert some <= every and len(some) == min(limit, len(every))

    check()
