# SPDX-License-Identifier: MIT
"""daxfs run: how it ends, which programs it says can't be observed, and that it leaves others alone."""

import re
import shutil
import subprocess
import sys

import mounts
import pytest

from daxfs.cli import run as run_command
from daxfs.client import PRELOAD

MAP = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    for _ in range(50):
        with mmap.mmap(file.fileno(), 0) as m:
            m[0] = 1
            m.flush()
"""


def daxfs_run(*args, **kwargs):
    return mounts.run([mounts.command("daxfs"), "run", *args], check=False, timeout=60, **kwargs)


@pytest.mark.parametrize("words, status, said", [
    (["--", "sh", "-c", "exit 7"], 7, ""),
    (["sh", "-c", "kill -9 $$"], -9, ""),
    (["--", "daxfs-there-is-no-such-program"], 127, "No such file"),
    (["--", "/there/is/none"], 127, "No such file"),
    (["--", "/etc/passwd"], 126, "Permission denied"),
    (["--", "/tmp"], 126, "Permission denied"),
    (["--fault", "user", "--", "sh", "-c", "exit 3"], 3, ""),
    (["--fault", "kernel", "true"], 0, ""),
    (["--fault", "x", "true"], 2, "kernel"),
    ([], 2, "PROGRAM"),
])  # fmt: skip
def test_ends(words, status, said):
    done = daxfs_run(*words)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
    assert bool(said) == bool(done.stderr)


def test_arguments_and_environment_are_the_programs():
    words = ["-x", "--json", "a b", "--", ""]
    code = "import os, sys; print(sys.argv[1:]); print(os.environ['LD_PRELOAD'])"
    done = daxfs_run("--", sys.executable, "-c", code, *words)
    assert done.stdout.splitlines() == [str(words), str(PRELOAD)] and done.stderr == ""


def test_the_shim_is_loaded_in_children_too():
    done = daxfs_run("--", "sh", "-c", "grep -c libdaxfs_preload /proc/self/maps")
    assert int(done.stdout) > 0


def test_scripts(tmp_path):
    script = tmp_path / "script"
    script.write_text("echo hello $1\n")
    script.chmod(0o755)
    assert daxfs_run(script, "you").stdout == "hello you\n"
    script.write_text(f"#!{sys.executable}\nprint(5)\n")
    assert daxfs_run(script).stdout == "5\n" and run_command.why_not(str(script)) == ""


def test_static_programs_are_named(tmp_path):
    source = tmp_path / "x.c"
    source.write_text("int main(void) { return 3; }\n")
    made = subprocess.run(["cc", "-static", "-o", tmp_path / "x", source], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("no static libc")
    done = daxfs_run(tmp_path / "x")
    assert done.returncode == 3 and "statically linked; its mappings are not observed" in done.stderr
    (tmp_path / "script").write_text(f"#!{tmp_path}/x\n")
    assert "statically" in run_command.why_not(str(tmp_path / "script"))


def test_who_gains_privileges_is_named(tmp_path):
    program = tmp_path / "true"
    shutil.copy("/bin/true", program)
    assert run_command.why_not(str(program)) == ""
    program.chmod(0o4755)
    if program.stat().st_uid == 0 and mounts.os.geteuid() == 0:
        mounts.os.chown(program, 12345, -1)
        program.chmod(0o4755)
        assert "setuid" in daxfs_run(program).stderr


@pytest.mark.parametrize("head", [b"", b"\x7fELF", b"\x7fELF" + bytes(60), b"#!", b"#! \n", b"#!/bin/\0sh\n",
                                  b"\x7fELF" + b"\xff" * 300])
def test_odd_heads(tmp_path, head):
    (tmp_path / "x").write_bytes(head)
    assert isinstance(run_command.why_not(str(tmp_path / "x")), str)


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_files_elsewhere_cost_nothing(tmp_path):
    """On tmpfs: the same calls with the shim, one statx more for each shared mapping, no ioctl."""
    file = mounts.Path(f"/dev/shm/{mounts.PREFIX}run")
    file.write_bytes(bytes(8192))
    counts = []
    try:
        for preload in ([], ["-E", f"LD_PRELOAD={PRELOAD}"]):
            out = tmp_path / "strace"
            mounts.run(["strace", "-f", "-c", "-o", out, *preload, sys.executable, "-S", "-c", MAP, file])
            rows = [line.split() for line in out.read_text().splitlines()]
            counts.append({row[-1]: int(row[3]) for row in rows if len(row) > 4 and re.match(r"\d", row[0])})
    finally:
        file.unlink()
    plain, shim = counts
    assert plain["msync"] == shim["msync"] == 50
    assert shim.get("statx", 0) - plain.get("statx", 0) == 50
    assert "userfaultfd" not in shim and shim.get("ioctl", 0) == plain.get("ioctl", 0)
    # What loading a library takes, and one look at the mounts.
    for name in (set(plain) | set(shim)) - {"statx", "total"}:
        assert shim.get(name, 0) - plain.get(name, 0) <= 6, name
