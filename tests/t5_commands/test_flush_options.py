# SPDX-License-Identifier: MIT
"""flush=, granularity=, write=, drain=, nt_threshold=, flushers=: what was chosen can be read.

In both forms of `daxfs stat`. What can't be had, or would mean nothing, is an error that says why, with exit
status 1.
"""

import json
import os

import mounts
import pytest

from daxfs._flush import available

pytestmark = pytest.mark.mount
SIZE = 1 << 20


def stat(region):
    """(facts, words of the text) of `daxfs stat`."""
    facts = json.loads(mounts.run([mounts.command("daxfs"), "stat", "--json", region.path]).stdout)
    return facts, mounts.run([mounts.command("daxfs"), "stat", region.path]).stdout.split()


def after(words, *name):
    """The word behind *name* in the text."""
    at = next(n for n in range(len(words)) if tuple(words[n : n + len(name)]) == name)
    return words[at + len(name)]


CHOSEN = {
    "": ("cache_line", available()["flush"][0], "nt", "write", 256, 1),
    **{f"flush={kind}": ("cache_line", kind, "nt", "write", 256, 1)
       for kind in available()["flush"] if kind.startswith("cl")},
    "flush=msync": ("cache_line", "msync", "nt", "write", 0, 1),
    "granularity=byte": ("byte", "none", "nt", "write", 256, 1),
    "granularity=byte,flush=none": ("byte", "none", "nt", "write", 256, 1),
    "granularity=page,drain=fsync": ("page", "msync", "nt", "fsync", 0, 1),
    "write=cached,flushers=3": ("cache_line", available()["flush"][0], "cached", "write", 0, 3),
    "drain=fsync,write=cached,write=nt": ("cache_line", available()["flush"][0], "nt", "fsync", 256, 1),
    "nt_threshold=4096": ("cache_line", available()["flush"][0], "nt", "write", 4096, 1),
    "nt_threshold=0": ("cache_line", available()["flush"][0], "nt", "write", 0, 1),
}


@pytest.mark.parametrize("options", CHOSEN)
def test_what_was_chosen_can_be_read(mount_factory, options):
    region = mount_factory(options=options)
    facts, words = stat(region)
    tracker = facts["tracker"]
    assert (facts["granularity"], facts["flush"]["kind"], tracker["write"], tracker["drain"],
            tracker["nt_threshold"], tracker["flushers"]) == CHOSEN[options]
    granularity, kind, write, drain, threshold, flushers = CHOSEN[options]
    assert after(words, "granularity") == granularity and after(words, "kind") == kind
    assert after(words, "nt", "kind") == facts["flush"]["nt_kind"]
    assert after(words, "nt", "threshold") == str(threshold) and after(words, "flushers") == str(flushers)
    assert after(words, "write") == write and after(words, "drain") == drain
    (region.path / "file").write_bytes(b"x" * SIZE)
    region.umount()
    region.mount()
    assert (region.path / "file").read_bytes() == b"x" * SIZE


REFUSED = {
    "flush=none": "granularity=byte", "granularity=cache_line,flush=none": "granularity=byte",
    "granularity=page,flush=none": "granularity 'page'",
    "granularity=page,flush=clflush": "only 'msync' does",
    "granularity=page,flushers=2": "flushers=2 can't be had",
    "flush=msync,flushers=2": "flushers=2 can't be had",
    "granularity=page,nt_threshold=64": "nt_threshold=64 can't be had",
    "write=cached,nt_threshold=64": "nt_threshold=64 can't be had",
    **{f"write=cached,drain={when}": "drain= can't be had with write=cached" for when in ("write", "fsync")},
    "record=/dev/null,flushers=2": "flushers=2 can't be had with record=",
    **{f"flush={kind}": "this CPU can't do" for kind in ("clwb", "clflushopt", "clflush")
       if kind not in available()["flush"]},
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_is_refused(region_factory, options):
    region = region_factory()
    done = mounts.run([mounts.command("mount.daxfs"), region.source, region.path, "-o", options], check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert REFUSED[options] in done.stderr and done.stderr.count("\n") == 1
    assert mounts.mounts_of(region.path) == []
    region.mount()  # nothing has kept the source


def test_more_flushers_where_there_is_nothing_to_share(mount_factory, tmp_path):
    for options in ("granularity=page", f"record={tmp_path / 'log'}"):
        region = mount_factory(options=options)
        done = mounts.run([mounts.command("daxfs"), "set", region.path, "flushers=2"], check=False)
        assert done.returncode == 1 and "flushers=2 can't be had" in done.stderr
        assert region.stat()["tracker"]["flushers"] == 1
        region.umount()


@pytest.mark.parametrize("transport", ["pyfuse3", "dev", "uring"])
def test_short_writes_of_a_mount(mount_factory, transport):
    """Flushed at once, by each transport; nothing is left for fsync but a drain."""
    if reason := mounts.why_no_transport(transport):
        pytest.skip(reason)
    region = mount_factory(options=f"transport={transport},drain=fsync,lazytime")
    fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        os.write(fd, bytes(SIZE))
        os.fsync(fd)
        before = region.stat()
        for n in range(10):
            assert os.pwrite(fd, b"x" * 200, n * 4096 + 3) == 200
        short = region.stat()
        assert os.pwrite(fd, b"x" * 256, 0) == 256
        long = region.stat()
    finally:
        os.close(fd)
    counted = [(b["flush"]["store_bytes"] - a["flush"]["store_bytes"] >= 2000,
                b["flush"]["nt_bytes"] - a["flush"]["nt_bytes"]) for a, b in ((before, short), (short, long))]
    assert counted == [(True, 0), (False, 256)]
    assert long["tracker"]["dirty_bytes"] == long["tracker"]["flushed_bytes"] == 0
