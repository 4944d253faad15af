# SPDX-License-Identifier: MIT
"""The control socket of a mount: one JSON line asked, one answered, or many until the asker leaves.

A mount is found by its device number, so that any path on it will do. The socket answers the mount's
owner and root, whom the kernel names (SO_PEERCRED). Limits: the server half runs in the trio thread and
its handler must not block; the client half needs no trio. Requests have at most 64 KiB.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import struct

from daxfs.errors import DaxfsError, sentence
from daxfs.fuse import mountinfo

log = logging.getLogger("daxfs.control")

LIMIT = 1 << 16
# What accept(2) says where something runs short that may be there again in _NAP seconds.
_SHORT, _NAP = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)), 0.1
_ROOT_DIRECTORY = "/run/daxfs"
_PEERCRED = struct.Struct("3i")  # pid, uid, gid


def directories(owner: int) -> list[str]:
    """Where the sockets of mounts of user *owner* may be; a daemon takes the first that it can use."""
    if owner == 0:
        return [_ROOT_DIRECTORY]
    runtime = os.environ.get("XDG_RUNTIME_DIR") if owner == os.getuid() else f"/run/user/{owner}"
    return ([os.path.join(runtime, "daxfs")] if runtime else []) + [f"/tmp/daxfs-{owner}"]


def socket_name(device: int) -> str:
    """The socket's name for an st_dev."""
    return f"{os.major(device)}-{os.minor(device)}.sock"


def _own_directory() -> str:
    """The first directory that can be made, mode 0700 and ours: nobody else may put sockets there."""
    problem: OSError | None = None
    for path in directories(os.getuid()):
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            st = os.lstat(path)
            if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.getuid():
                raise DaxfsError(f"{path}: not a directory of ours", errno.EPERM)
            if st.st_mode & 0o077:
                os.chmod(path, 0o700)
            return path
        except OSError as exc:
            problem = exc
    raise problem or DaxfsError("no directory for the control socket", errno.ENOENT)


def _remove_stale(directory: str) -> None:
    """Unlink the sockets of daemons that were killed: nobody listens on them."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if not name.endswith(".sock"):
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


class Listener:
    """The server's end.

    *handler*: request dict to reply dict, or to an async generator of dicts, which are sent until the asker
    leaves; an OSError from it is the reply's error.
    """

    def __init__(self, device: int, handler):
        directory = _own_directory()
        _remove_stale(directory)
        self.path = os.path.join(directory, socket_name(device))
        self.handler = handler
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A socket of our own device number is stale: that mount is gone, or we would not have it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._sock.bind(self.path)
            os.chmod(self.path, 0o600)
            self._sock.listen(16)
            self._id = os.lstat(self.path).st_ino
        except BaseException:
            self._sock.close()
            raise

    async def serve(self, nursery) -> None:
        """Answer until cancelled."""
        import trio

        told = False
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._sock))
        try:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    if exc.errno not in _SHORT:
                        raise
                    if not told:
                        log.warning("control socket: %s; whoever asks has to wait", exc)
                    told = True
                    await trio.sleep(_NAP)
                    continue
                told = False
                nursery.start_soon(self._answer, stream)
        finally:
            await listener.aclose()

    async def _answer(self, stream) -> None:
        import trio

        try:
            async with stream:
                reply = None
                with trio.move_on_after(10):
                    reply = await self._reply(stream)
                    if isinstance(reply, dict):
                        await stream.send_all(_line(reply))
                if reply is not None and not isinstance(reply, dict):
                    await self._stream(stream, reply)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the asker has left

    async def _stream(self, stream, events) -> None:
        """Send what *events* yields until the asker leaves. A slow one is waited for in this task alone."""
        import trio

        async def watch(scope) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await stream.receive_some(LIMIT):
                    pass  # nothing more is asked on this connection
            scope.cancel()

        async with contextlib.aclosing(events), trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            try:
                async for part in events:
                    await stream.send_all(_line(part))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except Exception as exc:
                log.error("a stream on the control socket failed: %s: %s", type(exc).__name__, exc,
                          exc_info=log.isEnabledFor(logging.DEBUG))
            nursery.cancel_scope.cancel()

    async def _reply(self, stream):
        _, uid, _ = _PEERCRED.unpack(
            stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        # A stranger's request is read too, and refused then: one that is still being sent when the
        # socket closes would end in EPIPE there, and the answer would never be seen.
        text = b""
        while not text.endswith(b"\n"):
            part = await stream.receive_some(LIMIT)
            text += part
            if not part or len(text) > LIMIT:
                return {"error": "not a request: no line of JSON", "errno": errno.EINVAL}
        if uid not in (0, os.getuid()):
            return {"error": "only root and the mount's owner may ask", "errno": errno.EPERM}
        try:
            request = json.loads(text)
            if not isinstance(request, dict):
                raise ValueError("not an object")
            return self.handler(request)
        except ValueError as exc:
            return {"error": f"not a request: {exc}", "errno": errno.EINVAL}
        except OSError as exc:
            return {"error": sentence(exc), "errno": exc.errno or errno.EIO}
        except Exception as exc:
            log.error("a request on the control socket failed: %s: %s", type(exc).__name__, exc,
                      exc_info=log.isEnabledFor(logging.DEBUG))
            return {"error": f"internal error: {type(exc).__name__}: {exc}", "errno": errno.EIO}

    def close(self) -> None:
        """Remove the socket, if it is still ours (a newer mount may have the number)."""
        self._sock.close()
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._id:
                os.unlink(self.path)


def _line(reply: dict) -> bytes:
    return json.dumps(reply).encode() + b"\n"


def ask_path(path: str, request: dict, timeout: float = 10) -> dict:
    """Ask the daemon behind the mount that *path* lies on. DaxfsError where it is no daxfs mount."""
    return ask_mount(mount_of(path), request, timeout)


def mount_of(path: str) -> mountinfo.Mount:
    """The daxfs mount that *path* lies on; DaxfsError where there is none.

    The stat() below is answered by its daemon; where it is dead this says so.
    """
    try:
        device = os.stat(path).st_dev
    except OSError as exc:
        if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise DaxfsError(f"{path}: the daemon is gone; umount {path}", exc.errno) from exc
        # Shut down or lost it answers nothing but us, and the mount point itself is in the table of mounts.
        found = mountinfo.mount_at(os.path.abspath(path)) if exc.errno == errno.EIO else None
        if found is None:
            raise
        device = found.device
    mount = mountinfo.mount_of_device(device)
    if mount is None or mount.fstype not in mountinfo.TYPES:
        raise DaxfsError(f"{path}: not on a daxfs mount", errno.EINVAL)
    return mount


def is_there(mount: mountinfo.Mount) -> bool:
    """True if *mount* has not been unmounted; whether its daemon lives is another question."""
    # Of several, as after a mount --bind, in any order.
    return any((one.device, one.mountpoint) == (mount.device, mount.mountpoint) for one in mountinfo.mounts())


def ask_mount(mount: mountinfo.Mount, request: dict, timeout: float = 10) -> dict:
    """The reply of the daemon of *mount*; its error as DaxfsError."""
    with _asked(mount, request, timeout) as (_, file):
        return _answered(mount, file)


def follow_mount(mount: mountinfo.Mount, request: dict, timeout: float = 10):
    """What the daemon of *mount* says, reply by reply, until it ends. *timeout* is for the first one."""
    with _asked(mount, request, timeout) as (sock, file):
        yield _answered(mount, file)
        sock.settimeout(None)
        for text in file:
            if text.endswith(b"\n"):  # else the daemon was killed in the middle of it
                yield json.loads(text)


@contextlib.contextmanager
def _asked(mount: mountinfo.Mount, request: dict, timeout: float):
    """A connection to the daemon of *mount*, and a file to read what it says to *request*."""
    with _connected(mount, timeout) as sock, sock.makefile("rb") as file:
        try:
            sock.sendall(_line(request))
            yield sock, file
        except TimeoutError:
            raise DaxfsError(f"{mount.mountpoint}: no answer in {timeout:g} s", errno.ETIMEDOUT) from None


def _answered(mount: mountinfo.Mount, file) -> dict:
    text = file.readline()
    if not text.endswith(b"\n"):
        raise DaxfsError(f"{mount.mountpoint}: the daemon ended before it answered", errno.ECONNRESET)
    reply = json.loads(text)
    if "error" in reply:
        raise DaxfsError(f"{mount.mountpoint}: {reply['error']}", reply.get("errno", errno.EIO))
    return reply


def _connected(mount: mountinfo.Mount, timeout: float) -> socket.socket:
    """A socket on which the daemon of *mount* listens, and nobody else. DaxfsError."""
    name, killed = socket_name(mount.device), False
    for directory in directories(mount.owner):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(os.path.join(directory, name))
            _, uid, _ = _PEERCRED.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
            if uid in (0, mount.owner):
                return sock
            problem: OSError = PermissionError("somebody else answers")
        except OSError as exc:
            problem = exc
        sock.close()
        if isinstance(problem, PermissionError):
            raise DaxfsError(f"{mount.mountpoint}: only root and the mount's owner may ask", errno.EPERM)
        if not isinstance(problem, FileNotFoundError | ConnectionRefusedError):
            raise DaxfsError(f"{mount.mountpoint}: {problem}", problem.errno or errno.ETIMEDOUT)
        killed = killed or isinstance(problem, ConnectionRefusedError)
    if killed:
        raise DaxfsError(f"{mount.mountpoint}: the daemon is gone; umount {mount.mountpoint}", errno.ENOTCONN)
    # The next daemon that starts removes the socket of one that was killed.
    where = ", ".join(directories(mount.owner))
    raise DaxfsError(f"{mount.mountpoint}: no control socket {name} in {where}; "
                     f"if the daemon is gone, umount {mount.mountpoint}", errno.ENOENT)


def live_mounts() -> list[mountinfo.Mount]:
    """All daxfs mounts of this name space."""
    return [m for m in mountinfo.mounts() if m.fstype in mountinfo.TYPES]
