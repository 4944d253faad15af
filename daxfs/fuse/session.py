# SPDX-License-Identifier: MIT
"""One mount from its region's opening to its closing, in this process.

With ops.py the only place that knows pyfuse3. pyfuse3 keeps its session in module globals: one mount for
each process. We mount by ourselves (handshake.py) or, where that can't be, have libfuse do it. The kernel's
mount is taken away before the region is closed, whatever happens after it was made. This process never
touches a path on its own mount after that: nobody would answer.
"""

import contextlib
import errno
import logging
import os
import signal
import sys

import pyfuse3
import trio

from daxfs import emulate
from daxfs.data._transport import FOPEN_PARALLEL_DIRECT_WRITES, Transport
from daxfs.errors import DaxfsError, SourceError, UsageError, fail, sentence
from daxfs.fuse import calls, control, handshake, mountinfo, transports, wire
from daxfs.fuse.kernel_sync import KernelSync, find_sync
from daxfs.fuse.ops_base import BaseOperations
from daxfs.fuse.options import MountConfig, choice, count, fuse_arguments
from daxfs.fuse.passthrough import Passthrough, why_not
from daxfs.fuse.relay import Relay
from daxfs.fuse.streak import Streak
from daxfs.fuse.tracing import HandlerTrace, Tracer
from daxfs.pfn import PAGE_SIZE
from daxfs.region import Region

log = logging.getLogger("daxfs.mount")

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ABORT = "abort"  # ended_by: /sys/fs/fuse/connections/N/abort


class Session:
    """A region and its FUSE mount. Use `run` with one of its kinds: fs_session.py, raw_session.py.

    A kind has the methods that raise NotImplementedError here. ``fs`` of it: what is mounted, a FileSystem or
    a NoFileSystem. ``after_loss``: what to do when a source was lost.
    """

    after_loss = ""

    def __init__(self, config: MountConfig):
        self.config = config
        self.mountpoint = os.path.realpath(config.mountpoint)  # before it is mounted on
        self.ended_by = "umount"
        self.lost = ""  # of the region, once it is closed
        self.parked = 0  # handles, when it was last asked
        self.early: list[int] = []  # signals that came before they were listened for
        self.region: Region | None = None
        self.medium: emulate.Medium | None = None  # of emulate=
        self.fs = None
        self.mount: mountinfo.Mount | None = None
        self.link: handshake.Link | None = None  # None: libfuse mounts
        self.link_why = ""
        self.offer = 0  # what the kernel's INIT offers
        found = transports.for_mount(transports.probe(), config.flags)
        self.transport, self.transport_why = transports.choose(config.transport, found)
        self.native: Transport | None = None  # None: pyfuse3 has the kernel's descriptor
        self.sync_program = find_sync()
        self.streak = contextlib.nullcontext() if self.transport == "pyfuse3" else Streak()

    def open(self) -> None:
        """Region and what is in it. SourceError, FormatError, CorruptError, UsageError."""
        raise NotImplementedError

    def make_operations(self) -> BaseOperations:
        """The handlers, when the region is open."""
        raise NotImplementedError

    def info(self) -> dict:
        """What `daxfs info` shows beside `describe`."""
        raise NotImplementedError

    def remount(self, wish: dict) -> dict:
        """Change what *wish* names of a mount that goes on. DaxfsError where that can't be."""
        raise NotImplementedError

    def end(self) -> None:
        """After the last request: everything durable, and what is mounted marked clean."""
        raise NotImplementedError

    def open_region(self, mode: str) -> None:
        """``region``, from now on, at the price of the medium of emulate=. Errors leave nothing open."""
        config = self.config
        profile = emulate.find(config.emulate)
        region = Region.open(config.sources, mode, config.granularity, config.flush)
        if region.flush.kind == "msync" and (config.flushers > 1 or config.nt_threshold):
            region.close()
            name = "nt_threshold" if config.nt_threshold else "flushers"
            raise UsageError(f"{name}={getattr(config, name)} can't be had with flush kind "
                             "'msync' (granularity=page): there is nothing to choose")
        if profile is not None:
            try:
                self.medium = region.medium = emulate.Medium(region.flush, profile)
            except BaseException:
                region.close()
                raise
            log.info("%s: emulating %s", config.fsname, profile.title)
            for problem in self.medium.problems:
                log.warning("%s: emulating %s: %s", config.fsname, profile.name, problem)
        self.region = region

    def serve(self, ready) -> None:
        """Mount and answer the kernel until it is unmounted or a signal says so.

        *ready()* is called when the mount is there and will be answered.
        """
        self.operations = self.make_operations()
        self.operations.tell_limits()
        self.tracer = Tracer(self.operations.ring, HandlerTrace(self.operations, self.operations.ring))
        self._connect()
        self.operations.notify = pyfuse3.invalidate_inode
        try:
            self.mount = mountinfo.mount_at(self.mountpoint)
            if self.mount is None or self.mount.fstype not in mountinfo.TYPES:
                raise DaxfsError(f"{self.mountpoint}: the mount is not in {mountinfo.MOUNTINFO}")
            self.operations.device = self.mount.device
            self.operations.kernel_sync = KernelSync(self.mount, self.sync_program)
            trio.run(self._main, ready)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            # Threads before descriptors: nobody may use a number that means something else by then.
            if self.native is not None:
                self.native.stop()
                self.operations.reap()  # while the descriptor is there that their backing belongs to
                # The operations live until the next garbage collection, the transport's descriptors must not.
                self.operations.stats.native = None
                if self.operations.observing is not None:
                    self.operations.observing.aside.transport = None
            # Takes the mount away, lazily where it is in use, and ends requests that nobody answered.
            if self.link is not None:
                self.link.close(lambda: pyfuse3.close(unmount=False), self.ended_by == ABORT)
            else:
                pyfuse3.close(unmount=True)

    def _connect(self) -> None:
        """The mount and pyfuse3's session on it, both or an exception and neither."""
        try:
            self.link = self.operations.handshake = handshake.Link.open(self.config, self.mountpoint)
        except handshake.Unusable as exc:
            self.link_why = str(exc)
            self._without_link()
            self._set_passthrough("", 0)
            log.info("%s: mounted by libfuse, with the features that it knows: %s", self.mountpoint, exc)
            _init(self.operations, self.mountpoint, self.mountpoint, fuse_arguments(self.config))
            return
        try:
            _init(self.operations, self.mountpoint, self.link.path, [])
        except BaseException:
            self.link.close(None)
            raise

    def _without_link(self) -> None:
        """libfuse mounts, and so has the kernel's descriptor: no other transport can."""
        if self.config.transport not in ("auto", "pyfuse3"):
            raise UsageError(f"transport={self.config.transport} can't be had: libfuse has to mount "
                             f"({self.link_why}); use transport=pyfuse3")
        self.transport, self.transport_why = "pyfuse3", f"libfuse has to mount: {self.link_why}"

    async def _main(self, ready) -> None:
        listener = self._listen()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._signals)
                if listener:
                    nursery.start_soon(listener.serve, nursery)
                nursery.start_soon(self._begin, ready, nursery)
                nursery.start_soon(self.beside)
                await self._pyfuse3()
                nursery.cancel_scope.cancel()
        finally:
            if listener:
                listener.close()

    async def beside(self) -> None:
        """What else there is to do while the mount is served."""

    async def _pyfuse3(self) -> None:
        """pyfuse3's loop, to its end."""
        try:
            with self.streak:
                await pyfuse3.main()
        except BaseException as exc:
            if getattr(_plain(exc), "errno", None) != errno.ECONNABORTED:
                raise
            self.ended_by = ABORT

    async def _begin(self, ready, nursery) -> None:
        """Say that we are ready, after the handshake if there is one."""
        if self.link is not None:
            if not await self.link.negotiate(self._agree):
                log.info("%s: unmounted before it was ready", self.mountpoint)
                pyfuse3.terminate()
                return
            log.debug("%s: agreed on %s", self.mountpoint, " ".join(handshake.names(self.link.flags)))
            self._set_passthrough(self.transport, self.link.flags)
            if self.transport != "pyfuse3":
                self._start_native()
                nursery.start_soon(Relay(self.native, self.operations, self.streak).serve, self._native_ended)
        ready()

    def _agree(self, offer: int) -> str:
        """The transport, now that the kernel has said what it offers. UsageError where that is not enough."""
        self.offer = offer
        found = transports.for_mount(transports.probe(self.link.fuse), self.config.flags)
        self.transport, self.transport_why = transports.choose(
            self.config.transport, transports.at_init(found, offer))
        return self.transport

    def _set_passthrough(self, transport: str, agreed: int) -> None:
        """Direct mappings, or why there are none. *agreed*: the flags of INIT's reply."""
        there = bool(agreed & handshake.PASSTHROUGH)
        offered = bool(self.offer & handshake.PASSTHROUGH)
        why = "" if there else why_not(transport, offered, transports.kernel_version())
        self.operations.passthrough = Passthrough(self.link.fuse if there else -1, why)

    def _start_native(self) -> None:
        link, operations = self.link, self.operations
        # S13: read and write always take the direct path; mappings go through the page cache beside it.
        operations.direct = bool(link.flags & handshake.bits("direct_io_allow_mmap"))
        operations.open_flags = FOPEN_PARALLEL_DIRECT_WRITES if operations.direct else 0
        operations.killpriv = bool(link.flags & handshake.bits("handle_killpriv_v2"))
        operations.server.max_write = link.pages * PAGE_SIZE
        self.native = Transport(
            operations.server, self.transport, link.fuse, link.ours.fileno(), link.pages * PAGE_SIZE,
            transports.thread_count(self.config.threads),
            operations.open_flags)
        self.native.start()
        if operations.observing is not None:
            operations.observing.aside.transport = self.native
        self.tracer = Tracer(self.operations.ring)
        operations.stats.native = self.native
        operations.stats.called = {wire.OPCODES[opcode].lower() for opcode in calls.CALLS}

    def _native_ended(self, why: str) -> None:
        """The kernel's side is gone: "umount", "abort", or an error."""
        if self.ended_by == "umount":  # a signal may have come first
            self.ended_by = why
        log.debug("%s: transport ended: %s", self.mountpoint, why)
        pyfuse3.terminate()

    def _listen(self) -> control.Listener | None:
        """The control socket; without one the mount still works, but can't be asked."""
        try:
            return control.Listener(self.mount.device, self.answer)
        except OSError as exc:
            log.warning("no control socket, so daxfs stat can't be had: %s", exc)
            return None

    async def _signals(self) -> None:
        with trio.open_signal_receiver(*_ENDING) as arrivals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            number = self.early[0] if self.early else await anext(arrivals)
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # a second one must not cut the end short
            self.ended_by = signal.Signals(number).name
            log.info("%s: ending on %s", self.mountpoint, self.ended_by)
            await self.operations.kernel_sync()
            pyfuse3.terminate()

    def answer(self, request: dict):
        """The control socket's requests. DaxfsError for one that is unknown or refused."""
        if request.get("get") == "trace":
            return self.tracer.watch(request.get("events", ["requests"]))
        if request.get("get") in ("stat", "info"):
            self.parked = len(self.operations.server.parked())
            self.operations.reap()  # what programs have closed is not open
        if request.get("get") == "stat":
            return self.describe() | self.operations.stats.snapshot()
        if request.get("get") == "info":
            return self.describe() | self.info()
        if "track" in request:
            return self.set_tracker(str(request["track"]))
        if "flushers" in request:
            return self.set_flushers(str(request["flushers"]))
        if isinstance(request.get("set"), dict):
            return self.remount(request["set"])
        raise fail(errno.EINVAL, "unknown request")

    def set_tracker(self, policy: str) -> dict:
        """`daxfs set DIR track=`: what fsync goes by from now on. UsageError for a policy that is unknown."""
        config = self.config
        policy, was = choice("track", policy), config.track
        self.check_tracker(policy)
        try:
            files = self.operations.set_tracker(policy)
        except (MemoryError, OSError) as exc:
            config.track = self.operations.track
            memory = isinstance(exc, MemoryError)
            number = errno.ENOMEM if memory else exc.errno
            said = str(exc) or os.strerror(number) if memory else sentence(exc)
            half = config.track == was
            what = f"some files still have track={was}" if half else f"track={policy} all the same"
            if half and policy == "none":  # which is undone: no file may have it unknown to its owner
                what = f"track={was} as before"
            raise fail(number, f"{said}; {what}") from None
        config.track = policy
        log.info("%s: track=%s, was %s; %d files", self.mountpoint, policy, was, files)
        self.warn_of_tracker()
        return {"ok": True, "track": policy, "was": was, "files": files, "warning": config.warning(),
                "options": config.describe()}

    def set_flushers(self, value: str) -> dict:
        """`daxfs set DIR flushers=`: how many threads share a large write-back from now on. UsageError."""
        config = self.config
        wanted, was = count("flushers", value), config.flushers
        self.operations.set_flushers(wanted)
        config.flushers = wanted
        log.info("%s: flushers=%d, was %d", self.mountpoint, wanted, was)
        return {"ok": True, "flushers": wanted, "was": was, "warning": "", "options": config.describe()}

    def check_tracker(self, policy: str) -> None:
        """UsageError where *policy* can't be had."""

    def warn_of_tracker(self) -> None:
        """Say in the log what track=none means."""
        if self.config.warning():
            log.warning("%s: %s", self.config.fsname, self.config.warning())

    def describe(self) -> dict:
        """What every report names at its top."""
        region = self.region.describe()
        return {
            "pid": os.getpid(),
            "source": self.config.fsname,
            "mountpoint": self.mountpoint,
            "options": self.config.describe(),
            "granularity": region["granularity"],
            "emulated": region["emulated"],
            "safety": region["safety"],
            "warning": self.config.warning(),
            "readonly": self.fs.readonly,
            "shut_down": self.fs.shut,
            "init": handshake.names(self.link.flags) if self.link else [],
            "mounted_by": self._mounted_by(),
            "transport": self._describe_transport(),
            "direct": self._describe_direct(),
            "raw": self.operations.raw.describe() if self.operations.raw else None,
            "recording": None,
            "emulation": self.medium.describe() if self.medium else None,
            "region": region,
        }

    def _mounted_by(self) -> str:
        if self.link is None:
            return f"libfuse: {self.link_why}"
        return "fusermount3" if self.link.by_fusermount else "daxfs"

    def _describe_transport(self) -> dict:
        """threads: those that take requests. queues: of uring. waiting: requests for Python."""
        out = {"kind": self.transport, "why_not_better": self.transport_why, "threads": 1}
        if self.native is not None:
            out["threads"] = self.native.channels
            out |= {"waiting": self.native.pending, "malformed": self.native.counts()["malformed"]}
        if self.transport == "uring":
            out["queues"] = out["threads"] - 1  # the first reads what still comes through read(2)
        return out

    def _describe_direct(self) -> dict:
        """why_not: "" where files with ranges of their own are mapped directly. open: inodes that are now.

        parked: handles that were kept until this was asked.
        """
        operations = self.operations
        count = sum(map(operations.is_direct, operations.backing))
        return {"why_not": operations.passthrough.why, "open": count, "parked": self.parked}

    def close(self, durable: bool) -> None:
        """End what is mounted (*durable*: with `end`), then the region."""
        try:
            if self.fs is not None and durable:
                if self.region.lost:
                    self.operations.lost()
                self.end()
        finally:
            if self.region is not None:
                self.lost = self.region.lost
                self.close_region()

    def close_region(self) -> None:
        """Nothing stores any more."""
        self.region.close()


def run(kind: type[Session], config: MountConfig, ready, attempt=lambda action: action()) -> str:
    """Mount as *config* says and serve it to its end; what ended it ("umount", or a signal's name).

    OSError (DaxfsError) for all that goes wrong, ECONNABORTED among it; the mount is gone then. *ready* as
    in Session.serve. *attempt* calls what it is given, again where a busy source may become free.
    """
    # Until they are received in _signals, and while it ends, these wait: a mount must not outlive us.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    session = kind(config)
    # numpy's threads were there before and don't block them: no default action may end us with a mount.
    for number in _ENDING:
        signal.signal(number, lambda number, _frame: session.early.append(number))
    try:
        attempt(session.open)
        session.serve(ready)
    except BaseException as exc:
        log.debug("the session failed", exc_info=True)
        # Not marked clean: what failed may have left something half done, and replay mends that.
        with contextlib.suppress(OSError):
            session.close(durable=False)
        raise _plain(exc) from exc
    try:
        session.close(durable=True)
    except OSError:
        if not session.lost:
            raise
    if session.lost:
        raise SourceError(f"{session.lost}; what was not durable by then is lost{session.after_loss}",
                          errno.EIO)
    log.info("%s: ended by %s", session.mountpoint, session.ended_by)
    if session.ended_by != "umount" and session.ended_by not in signal.Signals.__members__:
        why = "the connection was aborted" if session.ended_by == ABORT else session.ended_by
        raise DaxfsError(f"{session.mountpoint}: {why}; all that had been written is durable",
                         errno.ECONNABORTED)
    return session.ended_by


def _plain(exc: BaseException) -> BaseException:
    """The one exception of a trio group, so that callers see an OSError where it was one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _init(operations, mountpoint: str, where: str, arguments: list[str]) -> None:
    """pyfuse3.init on *where*, with what libfuse writes to descriptor 2 made part of the error."""
    sys.stderr.flush()
    saved, catcher = os.dup(2), os.memfd_create("daxfs-libfuse")
    os.dup2(catcher, 2)
    problem = None
    try:
        pyfuse3.init(operations, where, arguments)
    except (RuntimeError, UnicodeError) as exc:
        problem = exc
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        text = os.pread(catcher, 4096, 0).decode(errors="replace")
        os.close(catcher)
    lines = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    if problem is not None:
        raise SourceError(f"{mountpoint}: can't be mounted: {lines or problem}", errno.EPERM) from problem
    if lines:
        log.warning("libfuse: %s", lines)
