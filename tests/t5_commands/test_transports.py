# SPDX-License-Identifier: MIT
"""Which transport a host gets, and what is said of the ones that it does not: against made-up hosts."""

import dataclasses
import errno
import os

import mounts
import pytest

from daxfs.cli import mount
from daxfs.errors import UsageError
from daxfs.fuse import transports
from daxfs.fuse.transports import Host, Reason, reasons

BEST = Host(kernel=(6, 18), native=("uring", "dev"), enable_uring="Y", builtin=True, io_uring_disabled="0",
            ring=0, device=True, clone=0)


def host(**changes):
    return dataclasses.replace(BEST, **changes)


def test_the_best_host_can_do_everything():
    assert reasons(BEST) == {"uring": None, "dev": None, "pyfuse3": None}
    assert list(reasons(BEST)) == list(transports.KINDS)


@pytest.mark.parametrize(
    ("changes", "why", "todo"),
    [
        ({"enable_uring": "N"}, "switched off", "echo Y > /sys/module/fuse/parameters/enable_uring"),
        ({"enable_uring": "N", "builtin": False}, "switched off", "options fuse enable_uring=1"),
        ({"enable_uring": "N", "builtin": True}, "switched off", "fuse.enable_uring=1 on the kernel's"),
        ({"enable_uring": "", "kernel": (6, 13)}, "6.13 has no FUSE over io_uring", ""),
        ({"enable_uring": None, "kernel": (6, 1)}, "6.1 has no FUSE over io_uring", ""),
        ({"enable_uring": "", "kernel": (6, 14)}, "CONFIG_FUSE_IO_URING", ""),
        ({"ring": errno.EPERM, "io_uring_disabled": "2"}, "io_uring is switched off", "io_uring_disabled=0"),
        ({"ring": errno.EPERM, "io_uring_disabled": "1"}, "without privilege", "kernel.io_uring_group"),
        ({"ring": errno.EPERM}, "seccomp", "--security-opt"),
        ({"ring": errno.ENOSYS, "io_uring_disabled": ""}, "seccomp", "--security-opt"),
        ({"ring": errno.EINVAL, "kernel": (6, 0)}, "6.0 lacks DEFER_TASKRUN", ""),
        ({"ring": errno.ENOMEM}, "no memory", "ulimit -l"),
        ({"ring": errno.EMFILE}, "Too many open files", ""),
        ({"native": ("dev",)}, "no uring transport", "make build"),
    ],
)
def test_why_not_uring(changes, why, todo):
    found = reasons(host(**changes))
    assert found["dev"] is None and found["pyfuse3"] is None
    assert why in found["uring"].why and todo in found["uring"].todo
    assert bool(found["uring"].todo) is bool(todo)


@pytest.mark.parametrize("changes", [{"enable_uring": "1"}, {"enable_uring": None}, {"ring": None}])
def test_what_is_not_known_is_left_to_init(changes):
    assert reasons(host(**changes))["uring"] is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"clone": errno.ENOTTY}, "FUSE_DEV_IOC_CLONE"),
        ({"clone": None, "device": False}, "chmod a+rw /dev/fuse"),
        ({"native": ()}, "no dev transport"),
    ],
)
def test_why_not_dev(changes, why):
    found = reasons(host(**changes))
    assert why in str(found["dev"]) and found["pyfuse3"] is None


@pytest.mark.parametrize("changes", [{"device": False}, {"clone": None}])
def test_dev_works_until_it_was_seen_not_to(changes):
    assert reasons(host(**changes))["dev"] is None


def test_auto_takes_the_best_that_works_and_says_why():
    assert transports.choose("auto", reasons(BEST)) == ("uring", "")
    kind, why = transports.choose("auto", reasons(host(enable_uring="N")))
    assert kind == "dev" and why.startswith("uring: ") and "echo Y >" in why
    kind, why = transports.choose("auto", reasons(host(native=())))
    assert kind == "pyfuse3" and "uring: " in why and "; dev: " in why


def test_a_name_is_a_demand():
    for kind in transports.KINDS:
        assert transports.choose(kind, reasons(BEST))[0] == kind
    assert transports.choose("dev", reasons(BEST))[1] == "transport=dev was asked for"
    assert transports.choose("pyfuse3", reasons(host(native=())))[0] == "pyfuse3"
    with pytest.raises(UsageError, match=r"transport=uring can't be had: .*echo Y >") as caught:
        transports.choose("uring", reasons(host(enable_uring="N")))
    assert mount.status_of(caught.value) == 1
    with pytest.raises(UsageError, match="transport=dev"):
        transports.choose("dev", reasons(host(native=())))


def test_init_has_the_last_word():
    found = reasons(BEST)
    assert transports.at_init(found, 1 << 41) == found
    without = transports.at_init(found, ~(1 << 41))
    assert without["dev"] is None and "offers no FUSE over io_uring" in without["uring"].why
    assert found["uring"] is None  # what it was given is left alone
    off = reasons(host(enable_uring="N"))
    assert transports.at_init(off, 0) == off  # the first reason is the better one


def test_allow_root_is_for_libfuse():
    found = transports.for_mount(reasons(BEST), {"allow_root": True})
    assert "allow_root" in found["uring"].why and "allow_root" in found["dev"].why
    assert found["pyfuse3"] is None
    assert transports.for_mount(reasons(BEST), {"allow_root": True, "allow_other": True}) == reasons(BEST)
    assert transports.for_mount(reasons(BEST), {}) == reasons(BEST)


def test_threads(monkeypatch):
    for cpus, expected in ((1, 1), (3, 3), (200, transports.THREADS_AUTO)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cpus=cpus: set(range(cpus)))
        assert transports.thread_count(None) == expected
    assert transports.thread_count(33) == 33


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_look_at_another_host(tmp_path):
    found = transports.look(root=tmp_path)
    assert found.enable_uring is None and found.ring is None and not found.device
    write(tmp_path, "proc/sys/kernel/osrelease", "6.14.3-amd64\n")
    write(tmp_path, "proc/sys/kernel/io_uring_disabled", "1\n")
    write(tmp_path, "sys/module/fuse/initstate", "live\n")
    write(tmp_path, "dev/fuse", "")
    found = transports.look(root=tmp_path)
    assert (found.kernel, found.io_uring_disabled, found.device) == ((6, 14), "1", True)
    assert found.enable_uring == "" and not found.builtin
    write(tmp_path, "sys/module/fuse/parameters/enable_uring", "N\n")
    assert transports.look(root=tmp_path).enable_uring == "N"


def test_this_host_has_an_answer():
    found = transports.probe()
    assert set(found) == set(transports.KINDS) and found["pyfuse3"] is None
    assert all(one is None or (isinstance(one, Reason) and one.why) for one in found.values())
    assert transports.choose("auto", found)[0] in transports.KINDS


def test_cloning_nothing_fails(tmp_path):
    if mounts.why_no_mounts():
        pytest.skip(mounts.why_no_mounts())
    with open(tmp_path / "file", "w") as file:
        assert transports.try_clone(file.fileno()) == errno.EINVAL


@pytest.mark.mount
def test_a_transport_that_can_not_be_had_is_refused_by_mount(region_factory):
    """allow_root is the one reason that every host has."""
    region = region_factory()
    done = mounts.run([mounts.command("mount.daxfs"), region.source, region.path,
                       "-o", "transport=dev,allow_root"], check=False)
    assert done.returncode == 1 and "transport=dev can't be had" in done.stderr
    assert "Traceback" not in done.stderr and mounts.mounts_of(region.path) == []
