# SPDX-License-Identifier: MIT
"""Commands whose standard streams are closed, full or left by their reader: one line at most, and no damage.

Limits: descriptors 0 to 2 are closed by the shell that starts a command, as a careless script does it.
"""

import os
import select
import subprocess

import mounts
import pytest

from daxfs.cli.common import sentence
from daxfs.errors import DaxfsError


def shell(words: str, *args):
    """*words* for sh, in which $1 and so on are *args*; a daemon must not hold the output open."""
    return mounts.run(["sh", "-c", words, "sh", *args], check=False)


@pytest.fixture
def formatted(tmp_path):
    path = tmp_path / "region"
    mounts.run([mounts.command("mkfs.daxfs"), "-q", "-s", "16M", path])
    return path


def test_mkfs_without_any_stream(tmp_path):
    """What it opens must not become the place of its messages: the region would be descriptor 0."""
    path = tmp_path / "region"
    words = "exec <&- >&- 2>&-; \"$1\" {} -s 16M \"$2\""
    assert shell(words.format(""), mounts.command("mkfs.daxfs"), path).returncode == 1
    assert not path.exists()  # it could not say what it had made
    assert shell(words.format("-q"), mounts.command("mkfs.daxfs"), path).returncode == 0
    mounts.run([mounts.command("fsck.daxfs"), "-n", path])


def test_a_closed_output_is_an_error_in_one_line(formatted):
    for output, why in ((">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")):
        done = shell(f"\"$1\" info \"$2\" {output}", mounts.command("daxfs"), formatted)
        assert (done.returncode, done.stderr) == (1, f"daxfs: {why}\n")
    for errors in ("2>&-", "2>/dev/full"):
        assert shell(f'"$1" info /nowhere {errors}', mounts.command("daxfs")).returncode == 1


@pytest.mark.mount
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">&-", ">/dev/full", "2>&-"])
def test_what_is_mounted_is_mounted_whoever_reads_of_it(formatted, tmp_path, streams):
    place = tmp_path / "mount"
    place.mkdir()
    done = shell(f"\"$1\" -v \"$2\" \"$3\" {streams}", mounts.command("mount.daxfs"), formatted, place)
    try:
        assert (done.returncode, done.stderr) == (0, "")
        (place / "file").write_bytes(b"x" * 9000)
    finally:
        if mounts.mounts_of(place):
            mounts.umount(place)
    mounts.run([mounts.command("fsck.daxfs"), "-n", formatted])


@pytest.mark.mount
def test_a_reader_that_leaves_is_141_as_of_sigpipe(mount_factory):
    region = mount_factory()
    for words in (["stat", "--json", "-w", "0.1"], ["stat", "-w", "0.1"], ["trace"]):
        with subprocess.Popen([mounts.command("daxfs"), *words, region.path],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
            while words == ["trace"] and not select.select([process.stdout], [], [], 0.1)[0]:
                os.statvfs(region.path)
            process.stdout.readline()
            process.stdout.close()
            while process.poll() is None:
                os.statvfs(region.path)  # something to trace
            assert (process.returncode, process.stderr.read()) == (141, b"")


def test_sentences():
    assert sentence(OSError(28, "No space left on device")) == "No space left on device"
    assert sentence(FileNotFoundError(2, "No such file or directory", "")) == "'': No such file or directory"
    assert sentence(OSError(5, "the daemon\nended")) == "the daemon ended"
    assert sentence(DaxfsError("say so", 22)) == "say so"
    assert sentence(OSError("alone")) == "alone" and sentence(OSError()) == os.strerror(5)


def test_help_of_a_subcommand_is_named():
    done = mounts.run([mounts.command("daxfs"), "set"], check=False)
    assert done.returncode == 2 and done.stderr.endswith("(try daxfs set --help)\n")
