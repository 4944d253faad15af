# SPDX-License-Identifier: MIT
"""tools/vm with a stand-in for QEMU: what a guest does badly is told as that, and nothing outlives it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from guest import __main__ as guest_main
from guest import cases
from vm import image, machine, run

SAY = "import os, sys, time\ndef event(text): open('events', 'a').write(text + '\\n')\n"


def stand_in(script):
    """What makes the command of a QEMU that is a Python program."""
    begin = "os.chdir({!r}); open('begun', 'w').close()"
    return lambda _hardware, work: [sys.executable, "-c", f"{SAY}{begin.format(str(work))}\n{script}"]


def guest(tmp_path, script, job=None):
    """A guest whose QEMU is a Python program in *tmp_path*."""
    return machine.start(None, job or {}, tmp_path, stand_in(script))


def heard(one, seconds=20.0, silence=20.0):
    return list(one.events(time.monotonic() + seconds, silence))


def test_events_until_it_is_off(tmp_path):
    script = """event('{"event": "up"}'); time.sleep(0.3); event('{"event": "done"}')"""
    with guest(tmp_path, script, {"cases": ["x"]}) as one:
        assert [event["event"] for event in heard(one)] == ["up", "done"]
    assert (tmp_path / "job").stat().st_size == 512 and b'"x"' in (tmp_path / "job").read_bytes()


@pytest.mark.parametrize(("script", "told"), [
    ("event('{\"event\": \"up\"}')", "the guest went away"),
    ("open('console.log', 'w').write('so far\\nKernel panic - not syncing: boo\\n')", "panic - not syn"),
    ("event('half an ev')", "no event"),
    ("print('qemu: no such option')", "no such option"),
    ("time.sleep(60)", "nothing heard for 1 s"),
    ("event('{\"event\": \"begin\", \"limit\": 2}'); time.sleep(60)", "nothing heard for 2 s"),
    ("event('{\"event\": \"begin\", \"limit\": 60}'); time.sleep(60)", "the time is up"),
])  # fmt: skip
def test_a_bad_end_is_an_error_with_the_console(tmp_path, script, told):
    (tmp_path / "events").write_text('{"event": "done"}\n')  # of a run before
    with guest(tmp_path, script) as one, pytest.raises(machine.GuestError) as info:
        while not (tmp_path / "begun").exists():  # to start a Python may take longer than it may be silent
            time.sleep(0.01)
        heard(one, 5, 1)
    assert told in str(info.value)


def test_nothing_outlives_it(tmp_path):
    script = "open('pid', 'w').write(str(os.getpid())); event('{\"event\": \"up\"}'); time.sleep(60)"
    with guest(tmp_path, script) as one:
        next(one.events(time.monotonic() + 20, 20))
        one.cut_power()
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_case_that_did_not_run_has_failed(tmp_path, capsys):
    wanted = [cases.Case("one", ()), cases.Case("two", (), "devdax")]
    results = run.Results(wanted)
    results.add({"name": "one", "ok": True, "seconds": 1, "text": "fine"}, tmp_path)
    assert results.finish() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed"
    results.add({"name": "two/devdax", "ok": True, "seconds": 1, "text": "fine"}, tmp_path)
    assert results.finish() == 0 and (tmp_path / "two-devdax.log").read_text() == "fine"


@pytest.mark.parametrize(("scripts", "passed", "starts"), [
    (["open('console.log', 'w').write('Kernel panic\\n')", "GOOD"], True, 2),
    (["open('console.log', 'w').write('Kernel panic\\n')"] * run.STARTS, False, run.STARTS),
    (["event('{\"event\": \"prepared\"}')", "GOOD"], False, 1),
])  # fmt: skip
def test_a_kernel_that_does_not_come_up_starts_again(tmp_path, monkeypatch, capsys, scripts, passed, starts):
    """But not where a case, or what comes before the first, may have brought it down."""
    end = {"event": "end", "name": "one", "ok": True, "text": "", "seconds": 1}
    good = "".join(f"event({json.dumps(event)!r});" for event in (end, {"event": "done"}))
    left = [good if script == "GOOD" else script for script in scripts]
    monkeypatch.setattr(run, "WORK", tmp_path)
    start = machine.start
    monkeypatch.setattr(machine, "start", lambda *args: start(*args, stand_in(left.pop(0))))
    results = run.Results([cases.Case("one", ())])
    run.boot("lines", results.wanted, None, {}, time.monotonic() + 20, results)
    assert (results.finish() == 0) == passed and len(scripts) - len(left) == starts
    assert capsys.readouterr().out.count("started again") == starts - 1


def test_the_list_of_cases():
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert {case.boot for case in cases.CASES} == set(cases.BOOTS)
    assert {case.kind for case in cases.CASES} == {"", *cases.KINDS}
    # The power goes once, at the end of the first boot: what is noted then is looked at in the second.
    first = [case for case in cases.CASES if case.boot == cases.BOOTS[0]]
    assert [case for case in cases.CASES if case.cut] == [first[-1]]
    done = subprocess.run([sys.executable, "-P", run.__file__, "--list", "doctor"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert len(done.stdout.splitlines()) == 1


def test_what_runs_where_nothing_is_named():
    """Each check and nearly each kind of source is there; what repeats others runs by name alone."""
    usual, every = run.choose([]), run.choose([], every=True)
    assert [case for case in cases.CASES if not case.more] == usual and every == cases.CASES
    # One file system will do for what both of them have.
    assert {case.kind for case in every} - {case.kind for case in usual} == {"ext4-file"}
    assert {case.command[3:5] for case in usual} == {case.command[3:5] for case in every}
    assert [case.name for case in run.choose(["posix-dev/*", "doctor"])] == ["doctor", "posix-dev/ext4-pool"]
    assert run.choose(["*"]) == every and {case.boot for case in run.choose([], "bytes")} == {"bytes"}


def test_a_long_report_is_written_whole(monkeypatch):
    """virtio-serial takes 32 KiB at a time."""
    written = bytearray()

    def write(_port, data):
        written.extend(data[:32768])
        return len(data[:32768])

    monkeypatch.setattr(guest_main.os, "write", write)
    guest_main.report(7, "end", text="x" * 100_000)
    assert json.loads(written) == {"event": "end", "text": "x" * 100_000} and written.endswith(b"\n")


def test_archive():
    """As the kernel's documentation (initramfs buffer format) lays it out."""
    data = image.cpio([("dir", 0o040755, b""), ("dir/file", 0o100644, b"12345")])
    assert len(data) % 4 == 0 and data.startswith(b"070701") and data.count(b"070701") == 3
    at = data.index(b"dir/file\0") - 110
    assert at % 4 == 0 and data[at + 54 : at + 62] == b"00000005" and data[at + 94 : at + 102] == b"00000009"
    assert data[at + 120 : at + 125] == b"12345" and (at + 120) % 4 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the image is built by it")
def test_what_building_mounts_is_not_seen_here(tmp_path, monkeypatch):
    """Who looks through this checkout meanwhile would keep a /proc in the tree busy, which then stays."""
    seen = tmp_path / "seen"
    fake = tmp_path / "mmdebstrap"
    fake.write_text(f"#!/bin/sh\nreadlink /proc/self/ns/mnt > {seen}\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(image.BuildError, match="mmdebstrap"):
        image._build_root(tmp_path, lambda _line: None)
    assert seen.read_text().strip() != os.readlink("/proc/self/ns/mnt")
