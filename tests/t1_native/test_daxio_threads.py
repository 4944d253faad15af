# SPDX-License-Identifier: MIT
"""L1: the data path's C core under threads without a GIL, with and without sanitizers (daxio_threads.c)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["daxio.c", "dirty.c", "file_lock.c", "filemap.c", "flush.c", "flush_x86.c", "flushers.c", "own.c",
           "trace.c", "tracker.c"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-sign-compare"]
BUILDS = {
    "as-built": (["-O2", *WARNINGS], "best", 2000),
    "races": (["-O1", "-g", "-fsanitize=thread", "-Wno-tsan"], "plain", 300),
    "memory": (["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], "plain", 1000),
}


def compiled(target: Path, flags: list[str], program: str = "daxio_threads.c", names=SOURCES) -> None:
    cc = shutil.which("cc")
    if cc is None:
        pytest.skip("no C compiler")
    empty = target.with_suffix(".c")
    empty.write_text("int main(void) { return 0; }\n")
    there = subprocess.run([cc, *flags, "-o", target, empty], capture_output=True, check=False)
    if there.returncode or subprocess.run([target], capture_output=True, check=False).returncode:
        pytest.skip(f"programs made with {' '.join(flags)} don't run here")
    sources = [ROOT / "daxfs" / "native" / name for name in names]
    subprocess.run([cc, "-std=gnu11", *flags, "-I", ROOT, "-o", target,
                    Path(__file__).with_name(program), *sources, "-lpthread"], check=True)


@pytest.mark.parametrize("build", BUILDS)
def test_readers_writers_writeback_and_the_end_of_the_region(tmp_path, build):
    """Reads are whole, no mark is lost, kill ends each thread with EIO: asserted in daxio_threads.c."""
    flags, kind, rounds = BUILDS[build]
    program = tmp_path / "threads"
    compiled(program, flags)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    for seed in (1, 2):
        ended = subprocess.run([program, kind, str(rounds), str(seed)], capture_output=True, text=True,
                               check=False, timeout=120, env=environment)
        assert ended.returncode == 0, ended.stderr[-6000:]
        print(build, ended.stdout.strip())


@pytest.mark.parametrize("build", BUILDS)
def test_own_ranges_and_a_program_that_does_as_it_likes(tmp_path, build):
    """No range sees another's bytes, a torn one is an error and mended: asserted in own_threads.c."""
    flags, _, rounds = BUILDS[build]
    program = tmp_path / "own"
    compiled(program, flags, "own_threads.c", [*SOURCES, "lost.c"])
    # The sanitizers' own handlers would take the SIGBUS for a bug.
    options = {"TSAN_OPTIONS": "halt_on_error=1:handle_sigbus=0",
               "ASAN_OPTIONS": "halt_on_error=1:handle_sigbus=0"}
    for seed in (1, 2):
        ended = subprocess.run([program, str(rounds // 20), str(seed)], capture_output=True, text=True,
                               check=False, timeout=120, env=os.environ | options)
        assert ended.returncode == 0, ended.stderr[-6000:]
        print(build, ended.stdout.strip())
