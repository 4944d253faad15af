# SPDX-License-Identifier: MIT
"""Fixtures for tests on real mounts, and the guards around them.

``--target DIR`` runs the t4 tests in DIR, any mount point, instead of on daxfs.
Tests with the mark ``transports`` run on a mount by each transport, or by the one of ``--transport``
alone; a transport that this host does not have skips them and says why.
Nothing here imports daxfs: the commands are used as installed. Those that regions run for themselves are
spared their start (warm.py) but in modules that say COLD_STARTS; what tests run by themselves is started.
"""

import itertools
import os
import shutil
from pathlib import Path

import mounts
import pytest
import warm

_numbers = itertools.count()
_URING = pytest.StashKey()
_STARTER = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--target", metavar="DIR", help="run the t4 tests in DIR instead of on a daxfs mount")
    parser.addoption("--long", action="store_true", help="also what repeats other tests at length")
    parser.addoption("--transport", choices=mounts.TRANSPORTS, help="mount with this one alone")


def pytest_generate_tests(metafunc):
    config = metafunc.config
    if "transport" not in metafunc.fixturenames or config.getoption("--target"):
        return
    if metafunc.definition.get_closest_marker("transports"):
        only = config.getoption("--transport")
        names = (only,) if only else mounts.TRANSPORTS
        metafunc.parametrize("transport", names, indirect=True, scope="module")


def leave_out(config, items, which) -> None:
    """Deselect the items for which *which* is true."""
    left = [item for item in items if which(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        gone = set(left)
        items[:] = [item for item in items if item not in gone]


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        leave_out(config, items, lambda item: item.get_closest_marker("long") is not None)


def pytest_configure(config):
    mounts.end_on_sigterm()
    # Off by default in the kernel; without it nothing of transport=uring would be tested.
    config.stash[_URING] = mounts.switch_uring_on()
    config.stash[_STARTER] = warm.Starter()


def pytest_runtest_setup(item):
    cold = getattr(item.module, "COLD_STARTS", False)
    mounts.starter = None if cold else item.config.stash[_STARTER]
    if item.get_closest_marker("mount") is None or item.config.getoption("--target"):
        return
    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(reason)


def pytest_sessionfinish(session):
    """A daxfs mount that the session made and left behind fails it, and is taken away."""
    mounts.close_all()
    session.config.stash[_STARTER].close()
    if session.config.stash[_URING]:
        mounts.ENABLE_URING.write_text("N")
    left = mounts.left_mounts()
    for path in left:
        mounts.run(["umount", "-l", path], check=False)
    if left:
        session.exitstatus = 1
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            reporter.write_line(f"mounts left behind by the tests: {', '.join(left)}", red=True)


@pytest.fixture(autouse=True)
def daemon_log_guard():
    """An ERROR line or a traceback in a daemon's log fails the test in which it appeared.

    Autouse, so it is set up first and looks last, after the factories closed their regions.
    """
    yield
    _fail_on_complaints()


def _fail_on_complaints():
    complaints = mounts.take_complaints()
    if complaints:
        pytest.fail("unexpected in the daemon's log:\n" + "\n".join(complaints), pytrace=False)


@pytest.fixture
def in_process(capfd):
    """in_process(main, arguments) -> (status, stdout, stderr) of a command in this process."""

    def call(main, *args):
        capfd.readouterr()
        status = main(list(args))
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err and "internal error" not in err, out + err
        return status, out, err

    return call


@pytest.fixture(scope="module")
def transport(request):
    """The transport that this module's mounts use now; None: the one that mount.daxfs takes by itself."""
    name = getattr(request, "param", None) or request.config.getoption("--transport")
    reason = name and mounts.why_no_transport(name)
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="module")
def mounted(transport):
    """One mounted region of 256 MiB for the whole module."""
    with mounts.MountedRegion(256 * mounts.MIB, options="allow_other", transport=transport) as region:
        yield region.mount()
    _fail_on_complaints()


def _factory(and_mount: bool, transport: str | None):
    made = []

    def make(size=64 * mounts.MIB, **kwargs) -> mounts.MountedRegion:
        region = mounts.MountedRegion(size, **{"transport": transport, **kwargs})
        made.append(region)
        return region.mount() if and_mount else region

    return made, make


@pytest.fixture
def region_factory(transport):
    """Call it for a formatted region that is not mounted; all are closed after the test."""
    made, make = _factory(False, transport)
    yield make
    for region in made:
        region.close()


@pytest.fixture
def mount_factory(transport):
    """Call it for a formatted and mounted region; all are closed after the test."""
    made, make = _factory(True, transport)
    yield make
    for region in made:
        region.close()


# Both name `transport` so that pytest sees it: what getfixturevalue takes is out of its sight.
@pytest.fixture
def target(request, transport):
    """An empty directory to work in: on the module's daxfs mount, or under ``--target``."""
    base = request.config.getoption("--target")
    root = Path(base) if base else request.getfixturevalue("mounted").path
    path = root / f"t{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def reopen(request, transport):
    """Call it to forget everything that is not on the media: umount and mount, nothing under --target."""
    if request.config.getoption("--target"):
        return lambda: None
    region = request.getfixturevalue("mounted")
    return region.remount
