# SPDX-License-Identifier: MIT
"""Becoming a daemon: a child that serves, a parent that waits until the mount answers.

The child tells one JSON line through a pipe: ready, or what went wrong and with which status. Limits: no
threads may exist yet when `start` forks; logging is set up in the process that serves.
"""

import json
import logging
import os
import signal
import sys
import syslog
import traceback
from collections.abc import Callable

from daxfs.cli import common
from daxfs.fuse.options import MountConfig

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Syslog(logging.Handler):
    """To syslog(3), which may be missing without harm."""

    PRIORITY = {logging.DEBUG: syslog.LOG_DEBUG, logging.INFO: syslog.LOG_INFO,
                logging.WARNING: syslog.LOG_WARNING, logging.ERROR: syslog.LOG_ERR}  # fmt: skip

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record).encode(errors="replace").decode().replace("\0", "")
        syslog.syslog(self.PRIORITY.get(record.levelno, syslog.LOG_CRIT), text)


def start_log(config: MountConfig, foreground: bool) -> None:
    """Log to log_file=, else to stderr in the foreground and to syslog as a daemon."""
    if config.log_file:
        handler: logging.Handler = logging.FileHandler(config.log_file)
        handler.setFormatter(logging.Formatter(_FORMAT))
    elif foreground:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
    else:
        syslog.openlog("daxfs", syslog.LOG_PID, syslog.LOG_DAEMON)
        handler = _Syslog()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("daxfs").setLevel(LEVELS[config.log_level])
    logging.captureWarnings(True)


def start(config: MountConfig, serve: Callable, status_of: Callable[[OSError], int],
          answers: Callable[[], None], prog: str = "mount.daxfs") -> int:
    """Fork; the child runs ``serve(config, ready)``. The parent returns a status when the mount answers.

    *answers*: called in the parent once the child is ready; an OSError means that the mount does not answer.
    *prog*: whose name stands before the message if something goes wrong.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(config, serve, status_of, writer)  # does not return
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.readline()
    if not text.endswith(b"\n"):
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        raise OSError(5, f"the daemon ended with {how} before the mount answered")
    reply = json.loads(text)
    if "error" in reply:
        os.waitpid(pid, 0)
        common.say(prog, reply["error"])
        if os.environ.get("DAXFS_DEBUG") == "1":
            print(reply["traceback"], file=sys.stderr)
        return reply["status"]
    try:
        answers()
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    return 0


def _child(config: MountConfig, serve: Callable, status_of: Callable, writer: int) -> None:
    """The daemon's life. Leaves by os._exit: nothing of the parent's may run twice."""
    status = 2
    told = False

    def ready() -> None:
        nonlocal told
        told = True
        _tell(writer, {"ready": True})

    try:
        writer = _leave_terminal(writer)
        start_log(config, foreground=False)
        serve(config, ready)
        status = 0
    except BaseException as exc:
        internal = f"internal error: {type(exc).__name__}: {exc}"
        problem = exc if isinstance(exc, OSError) else OSError(5, internal)
        status = status_of(problem)
        if told:
            logging.getLogger("daxfs").error("%s: ended: %s", config.mountpoint, common.sentence(problem))
        else:
            _tell(writer, {"error": common.sentence(problem), "status": status,
                           "traceback": "".join(traceback.format_exception(exc))})
    finally:
        logging.shutdown()
        os._exit(status)


def _leave_terminal(writer: int) -> int:
    """A session of our own, no descriptor of the caller's but the pipe; the pipe's new number."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    # The pipe goes to 3 and everything above is closed: a caller that waits for the end of one of its
    # own pipes must not wait for us.
    if writer != 3:
        os.dup2(writer, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 1 << 16)
    return 3


def _tell(writer: int, message: dict) -> None:
    """One line to the parent, then the pipe is closed."""
    try:
        os.write(writer, json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # the parent was killed; the mount goes on
    os.close(writer)
