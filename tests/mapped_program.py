# SPDX-License-Identifier: MIT
"""A child that maps a file, closes it or keeps it open, and does what lines on its input say.

Limits: nothing of daxfs; tests and the guest of `make test-vm` use it. Who makes one ends it.
"""

import signal
import subprocess
import sys

PROGRAM = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
if "keep" not in sys.argv:
    os.close(fd)
# Python's mmap has a descriptor of its own: only the mapping shall be left.
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == sys.argv[1]:
                os.close(int(name))
        except FileNotFoundError:
            pass
print("ready", flush=True)
n = 0
while "busy" in sys.argv:
    n += 1
    for at in range(0, len(m), 4096):
        m[at : at + 8] = n.to_bytes(8, "little")
for line in sys.stdin:
    word, _, text = line.strip().partition(" ")
    if word == "store":
        m[: len(text)] = text.encode()
    elif word == "map":
        m = mmap.mmap(fd, 4096)
    elif word == "end":
        break
    print(m[:5].decode(errors="replace"), flush=True)
os._exit(0)
"""


class Program:
    def __init__(self, path, *how):
        self.child = subprocess.Popen([sys.executable, "-c", PROGRAM, path, *how], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        self.pid = self.child.pid
        assert self.child.stdout.readline() == "ready\n"

    def say(self, line: str) -> str:
        print(line, file=self.child.stdin, flush=True)
        return self.child.stdout.readline().rstrip("\n")

    def dies_of_sigbus(self, line: str = "look") -> bool:
        """On its next look, or by itself; it says nothing before."""
        return self.say(line) == "" and self.child.wait(20) == -signal.SIGBUS

    def end(self) -> None:
        self.child.kill()
        self.child.communicate()
