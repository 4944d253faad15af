# SPDX-License-Identifier: MIT
"""One run of the guest: QEMU in software emulation, its console, and the events that the guest reports.

The guest writes events, a JSON object a line, to a virtio-serial port; QEMU puts them in a file, which is
read here as it grows. Limits: nothing is sent to the running guest; what it has to do is on its job disk.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
NVDIMM_SIZE = 2 * GIB
LABEL_SIZE = "128K"
MEMORY = "3G"
SECTOR = 512
_PANIC = "Kernel panic"
_CMDLINE = "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr watchdog_thresh=60 no_timer_check"


class GuestError(RuntimeError):
    """The guest panicked, hung or went away; the text says which and holds the end of its console."""


@dataclass(frozen=True)
class Hardware:
    """What differs between two runs. persistence: None (up to the memory controller) or "cpu"."""

    image: object
    checkout: Path
    nvdimm: Path
    persistence: str | None = None


def qemu_command(hardware: Hardware, work: Path) -> list[str]:
    """The command line; the guest's disks keep no change, its NVDIMM keeps all."""
    machine = "q35,nvdimm=on"
    if hardware.persistence:
        machine += f",nvdimm-persistence={hardware.persistence}"
    command = ["qemu-system-x86_64", "-machine", machine, "-accel", "tcg,thread=multi", "-cpu", "max",
               "-smp", "2", "-m", f"{MEMORY},slots=4,maxmem=8G",
               "-object", f"memory-backend-file,id=pmem,share=on,mem-path={hardware.nvdimm},"
               f"size={NVDIMM_SIZE},align=2M",
               "-device", f"nvdimm,id=nvdimm0,memdev=pmem,unarmed=off,label-size={LABEL_SIZE}",
               "-kernel", str(hardware.image.kernel), "-initrd", str(hardware.image.initrd),
               "-append", _CMDLINE, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
               "-chardev", f"file,id=console,path={work / 'console.log'}", "-serial", "chardev:console",
               "-device", "virtio-serial-pci", "-chardev", f"file,id=events,path={work / 'events'}",
               "-device", "virtserialport,chardev=events,name=events", "-device", "virtio-rng-pci"]
    disks = ((hardware.image.disk, "snapshot=on"), (hardware.checkout, "readonly=on"),
             (work / "job", "readonly=on"))
    for path, how in disks:
        command += ["-drive", f"file={path},format=raw,if=virtio,{how}"]
    return command


def new_nvdimm(path: Path) -> None:
    """An NVDIMM as it leaves the factory: all zeros, labels too."""
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:
        file.truncate(NVDIMM_SIZE)


class Guest:
    """A started guest. ``events`` yields what it reports until it has switched itself off."""

    def __init__(self, command: list[str], work: Path):
        self.work = work
        self._buffer = b""
        self._log = open(work / "qemu.log", "wb")
        # temporary files of snapshot=on are as large as what the guest writes to its disk
        env = dict(os.environ, TMPDIR=str(work))
        # QEMU does not outlive this program, however that ends.
        command = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", *command]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log,
                                         stderr=self._log, env=env, start_new_session=True)
        self._events = None

    def events(self, deadline: float, silence: float) -> Iterator[dict]:
        """Each event as it comes. GuestError at *deadline* (monotonic), after *silence* seconds without
        an event (a "limit" in the last one replaces it), at a panic, and where QEMU ends before "done".
        """
        heard, patience, done = time.monotonic(), silence, False
        while True:
            ended = self._process.poll() is not None
            for event in self._read():
                heard, patience = time.monotonic(), event.get("limit", silence)
                done = done or event["event"] == "done"
                yield event
            now = time.monotonic()
            if ended:
                if not done:
                    raise GuestError(self._told(f"the guest went away (QEMU: {self._process.returncode})"))
                return
            if now > deadline or now - heard > patience:
                why = "the time is up" if now > deadline else f"nothing heard for {patience:.0f} s"
                raise GuestError(self._told(why))
            time.sleep(0.1)

    def _read(self) -> list[dict]:
        """Events that were written since the last call."""
        if self._events is None:
            try:
                self._events = open(self.work / "events", "rb")
            except FileNotFoundError:
                return []
        self._buffer += self._events.read()
        *lines, self._buffer = self._buffer.split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError as exc:
            raise GuestError(self._told(f"the guest wrote what is no event: {exc}")) from exc

    def _told(self, why: str) -> str:
        """Why, and the last lines of the console (QEMU's own words where there is none)."""
        lines: list[str] = []
        for name in ("qemu.log", "console.log"):
            path = self.work / name
            lines += path.read_text(errors="replace").splitlines()[-30:] if path.exists() else []
        panic = next((line for line in lines if _PANIC in line), "")
        return "\n".join([panic or why, *("    " + line for line in lines)])

    def cpu(self) -> float:
        """Seconds of CPU time that the guest has had: what a busy machine does not stretch."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cut_power(self) -> None:
        """What the power cut is here: QEMU is gone from one instruction to the next. Also cleans up."""
        if self._process.poll() is None:
            # its own session and never waited for before: the number is still this process's
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self.cut_power()
        self._log.close()
        if self._events is not None:
            self._events.close()


@contextmanager
def start(hardware: Hardware, job: dict, work: Path, command=qemu_command):
    """Start a guest that does *job*, with its files in *work*; it is gone at the end."""
    work.mkdir(parents=True, exist_ok=True)
    for name in ("console.log", "events"):
        (work / name).unlink(missing_ok=True)
    text = json.dumps(job).encode()
    (work / "job").write_bytes(text + b" " * (-len(text) % SECTOR))
    guest = Guest(command(hardware, work), work)
    try:
        yield guest
    finally:
        guest.close()
