# SPDX-License-Identifier: MIT
"""The case `pinned` (cases.py): what the kernel gives nobody on fsdax while somebody's I/O has it."""

import ctypes
import mmap
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import mounts

from .checks import MIB, region


def pinned() -> None:
    """A write that has the file's own mapping for a buffer pins its pages until it is answered; what it
    makes the daemon do to the file below must not wait for that: behind the end, into a hole, past a gap.
    What others have pinned a truncate, a hole and a revocation wait for, but nobody else does, and no longer
    than they say; the bytes stay what they were.
    """
    with region() as one:
        mounts.set_dax(one.path)
        data = os.urandom(8192)
        path = one.path / "file"
        path.write_bytes(data)
        with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 8192) as memory:
            fd, view = file.fileno(), memoryview(memory)
            assert os.pwrite(fd, view[:4096], 4196) == 4096
            assert os.pwrite(fd, view[:4096], 10 * 4096 + 1) == 4096
            os.ftruncate(fd, 16 * MIB)
            late = memory[100:8192]
            assert os.pwrite(fd, view[100:8192], 5 * MIB) == 8092
            assert os.preadv(fd, [view[4096:]], 0) == 4096
            view.release()
            assert memory[:] == data[:4096] * 2
        stored = path.read_bytes()
        assert stored[4096:8292] == data[:4096] + data[3996:4096]
        assert stored[8292 : 10 * 4096 + 1] == bytes(10 * 4096 + 1 - 8292)
        assert stored[10 * 4096 + 1 :][:4096] == data[:4096]
        assert stored[5 * MIB :][:8192] == late + bytes(100) and len(stored) == 16 * MIB
        _pinned_by_others(one.path / "piped")
        _pinned_again_and_again(one.path / "raced")
        print("cut later:", one.log_file.read_text().count("its range is cut later"))
        assert "refused (ETXTBSY)" in one.log_file.read_text()


def _pin(memory, pos: int, pipe: int) -> bool:
    """Have *pipe* hold the page of *memory* at *pos*; False where the file has none there any more."""
    at = ctypes.c_char.from_buffer(memory, pos)
    piece = (ctypes.c_void_p * 2)(ctypes.addressof(at), 4096)  # struct iovec
    return ctypes.CDLL(None).vmsplice(pipe, piece, 1, 0) == 4096


def _pinned_again_and_again(path: Path) -> None:
    """Pages come and go under somebody's I/O while the file is cut and grows: what was cut is never read."""
    path.write_bytes(bytes(4 * 4096))
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 4 * 4096) as memory:
        child = os.fork()
        if not child:
            reads, writes = os.pipe()
            while True:
                if _pin(memory, 2 * 4096, writes):
                    time.sleep(random.uniform(0, 0.03))
                    os.read(reads, 4096)
        try:
            until, rounds = time.monotonic() + 8, 0
            while time.monotonic() < until:
                data = os.urandom(4 * 4096 - 100)
                assert os.pwrite(file.fileno(), data, 0) == len(data)
                os.ftruncate(file.fileno(), 4000)
                os.ftruncate(file.fileno(), 4 * 4096)
                assert os.pread(file.fileno(), 1 << 20, 0) == data[:4000] + bytes(4 * 4096 - 4000)
                rounds += 1
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        print("rounds of cut and growth:", rounds)
        assert rounds


def _pinned_by_others(path: Path) -> None:
    """A pipe has pinned a page of a mapping, by vmsplice(2); other programs cut and punch the file."""
    data = os.urandom(12288)
    path.write_bytes(data)
    reads, writes = os.pipe()
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 12288) as memory:
        assert memory[:] == data
        assert _pin(memory, 4096, writes)
        cut = ["truncate", "-s", "4096", path]
        for words in (cut, ["fallocate", "-p", "-o", "4096", "-l", "8192", path]):
            begin = time.monotonic()
            waits = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
            while waits.poll() is None:
                since = time.monotonic()
                subprocess.run(["touch", path.with_name("other")], check=True, timeout=20)
                print(f"touch beside {words[0]}: {time.monotonic() - since:.2f} s")
            took = time.monotonic() - begin
            print(f"{words[0]}: {took:.2f} s")
            said = waits.communicate()[1]
            assert waits.returncode and "Text file busy" in said and 4 < took < 30, (took, said)
            assert path.stat().st_size == 12288 and memory[:] == data
        revoke = [mounts.command("daxfs"), "revoke"]
        done = mounts.run([*revoke, "--timeout", "0", path.parent], check=False)
        print(done.stdout, done.stderr)
        assert done.returncode == 1 and "pinned" in done.stdout + done.stderr
        mounts.run([*revoke, "--undo", path.parent])
        assert memory[:] == data
        waits = subprocess.Popen(cut)
        time.sleep(1)
        assert waits.poll() is None
        assert os.read(reads, 4096) == data[4096:8192]
        assert waits.wait(20) == 0
    assert path.read_bytes() == data[:4096]
    os.close(reads)
    os.close(writes)


if __name__ == "__main__":
    pinned()
