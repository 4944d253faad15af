# SPDX-License-Identifier: MIT
"""mount.daxfs on real mounts: statuses and messages, how a mount ends, remount, and mount(8)'s ways in."""

import contextlib
import mmap
import os
import pwd
import signal
import stat
import subprocess
import time

import mounts
import pytest

from daxfs.cli import common, links
from daxfs.fuse import mountinfo

pytestmark = pytest.mark.mount
COLD_STARTS = True


def mount(*args, status=0):
    done = mounts.run([mounts.command("mount.daxfs"), *args], check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if status:
        assert done.stderr.startswith("mount.daxfs: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr if status else done.stdout


@contextlib.contextmanager
def held_open(path):
    """A descriptor of a file whose mount goes away under it: then close(2) says so."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def options_of(path):
    found = mountinfo.mount_at(str(path))
    return set(found.options + found.super_options)


def test_what_the_kernel_shows(mount_factory):
    region = mount_factory(options="noatime,nosuid,allow_other,nofail,x-test=1")
    found = mountinfo.mount_at(str(region.path))
    assert (found.fstype, found.source) == ("fuse.daxfs", str(region.source))
    assert {"rw", "noatime", "nosuid", "allow_other", "default_permissions"} <= options_of(region.path)
    assert "nodev" not in options_of(region.path)


def test_fsname_with_any_bytes(mount_factory):
    region = mount_factory(options=r"fsname=a\,b ü\\")
    assert mountinfo.mount_at(str(region.path)).source == "a,b ü\\"


def test_several_sources(region_factory, tmp_path):
    one = region_factory()
    paths = [tmp_path / "a", tmp_path / "b"]
    mounts.run([mounts.command("mkfs.daxfs"), "-s", "16M", *paths])
    both = f"{paths[0]},{paths[1]}"
    mount(both, one.path, "-o", f"log_file={one.log_file}")
    try:
        assert os.statvfs(one.path).f_blocks * 4096 > 20 * mounts.MIB
        assert mountinfo.mount_at(str(one.path)).source == both
    finally:
        one.adopt().umount()
    assert "2 sources" in mount(paths[0], one.path, status=32)
    assert "not the first" in mount(f"{paths[1]},{paths[0]}", one.path, status=32)


@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        ("bogus", 1, "'bogus'"), ("track=xfs", 1, "extent+clear, none"), ("write=x", 1, "write=x"),
        ("granularity=page,flush=clwb", 1, ""), ("granularity=page,flushers=2", 1, "flushers=2 can't be had"),
        ("flush=msync,granularity=page,nt_threshold=64", 1, "nt_threshold=64 can't be had"),
        ("uid=1,ro", 32, "uid="),
    ],
)  # fmt: skip
def test_options_refused(region_factory, options, status, word):
    region = region_factory()
    assert word in mount(region.source, region.path, "-o", options, status=status)
    assert mounts.mounts_of(region.path) == []
    region.mount()


def test_places_refused(region_factory, tmp_path):
    region = region_factory()
    assert "does not exist" in mount(region.source, tmp_path / "none", status=32)
    (tmp_path / "file").touch()
    assert "not a directory" in mount(region.source, tmp_path / "file", status=32)
    assert "none" in mount(tmp_path / "none", region.path, status=32)
    (tmp_path / "zeros").write_bytes(bytes(16 * mounts.MIB))
    assert "not a daxfs region" in mount(tmp_path / "zeros", region.path, status=32)
    assert "'DIR'" in mount(region.source, status=1)
    assert "--bogus" in mount("--bogus", region.source, region.path, status=1)
    assert "ext4" in mount("-t", "ext4", region.source, region.path, status=1)
    assert mounts.mounts_of(region.path) == []


def test_twice_is_busy(mount_factory, tmp_path):
    region = mount_factory()
    assert "already mounted" in mount(region.source, region.path, status=32)
    assert "busy" in mount(region.source, tmp_path, status=32)
    assert mounts.mounts_of(tmp_path) == []


def test_nonempty_mount_point(region_factory):
    region = region_factory()
    (region.path / "below").touch()
    region.mount()
    assert os.listdir(region.path) == []
    region.umount()
    assert os.listdir(region.path) == ["below"]
    (region.path / "below").unlink()


def test_umount_and_mount_at_once(mount_factory):
    region = mount_factory()
    for _ in range(3):
        mounts.umount(region.path)
        region.mount()  # the old daemon may still be closing: mount.daxfs waits for it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_unmounts_cleanly(mount_factory, number):
    region = mount_factory()
    with held_open(region.path / "file") as fd:
        os.write(fd, b"mapped or not, it stays")
        os.kill(region.pid, number)
        assert region._wait_gone(20)
        assert mounts.mounts_of(region.path) == []
    region.mount()
    assert (region.path / "file").read_text() == "mapped or not, it stays"
    assert region.stat()["replayed"] == 0


def test_mapped_stores_survive_sigterm(mount_factory):
    region = mount_factory()
    with held_open(region.path / "file") as fd:
        os.truncate(fd, 8192)
        with mmap.mmap(fd, 8192) as mapping:
            mapping[5000:5005] = b"store"
            os.kill(region.pid, signal.SIGTERM)
            assert region._wait_gone(20)
    region.mount()
    assert (region.path / "file").read_bytes()[5000:5005] == b"store"


def test_foreground(region_factory):
    region = region_factory()
    with open(region.log_file, "wb") as log:
        process = subprocess.Popen([mounts.command("mount.daxfs"), "-f", "-v", region.source, region.path],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not mounts.mounts_of(region.path) and time.monotonic() < deadline:
            time.sleep(0.05)
        (region.path / "file").write_text("x")
        assert process.poll() is None and region.stat()["pid"] == process.pid
        mounts.umount(region.path)
        assert process.wait(20) == 0
    assert "mounted on" in region.log_file.read_text()


def test_daemon_keeps_nothing_of_the_callers(mount_factory):
    region = mount_factory()
    where = [os.readlink(f"/proc/{region.pid}/fd/{fd}") for fd in (0, 1, 2)]
    assert where == [os.devnull] * 3 and os.readlink(f"/proc/{region.pid}/cwd") == "/"
    assert os.getsid(region.pid) == region.pid


def test_owner_options_last(mount_factory):
    region = mount_factory(options="uid=1234,gid=56")
    st = region.path.stat()
    assert (st.st_uid, st.st_gid) == (1234, 56)
    region.remount("")
    assert region.path.stat().st_uid == 1234


def test_device_nodes_and_set_id_bits_count(mount_factory):
    region = mount_factory()
    os.mknod(region.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with open(region.path / "null", "wb") as file:
        file.write(b"gone")
    region.remount("nodev")
    with pytest.raises(PermissionError):
        open(region.path / "null", "rb").close()


def test_sloppy(region_factory):
    region = region_factory()
    mount("-s", "-n", region.source, region.path, "-o", "bogus=1,ro", "-o", f"log_file={region.log_file}")
    region.adopt()
    assert "ro" in options_of(region.path)


def test_remount_read_only_and_back(mount_factory):
    region = mount_factory()
    (region.path / "file").write_text("x")
    with open(region.path / "held", "w"):
        text = mount("none", region.path, "-o", "remount,ro", status=32)
        assert "busy" in text.lower()
    mount("none", region.path, "-o", "remount,ro,noatime")
    assert {"ro", "noatime"} <= options_of(region.path)
    facts = region.stat()
    assert facts["readonly"] and facts["options"].startswith("ro,noatime")
    with pytest.raises(OSError, match="Read-only"):
        (region.path / "new").touch()
    mount("none", region.path, "-o", "remount,rw,relatime")
    assert {"rw", "relatime"} <= options_of(region.path) and not region.stat()["readonly"]
    (region.path / "new").touch()


def test_remounted_read_only_is_clean_on_media(mount_factory):
    region = mount_factory()
    (region.path / "file").write_text("x")
    mount("none", region.path, "-o", "remount,ro")
    region.kill()
    region.mount()
    assert region.stat()["replayed"] == 0 and (region.path / "file").read_text() == "x"


def test_a_remount_names_what_it_leaves_and_nothing_else(mount_factory):
    """mount(8) hands all of fstab's options to a remount: what is so already is nothing to tell of."""
    asked = "track=pmd,flushers=2,nt_threshold=512,write=nt,allow_other"
    region = mount_factory(options=asked)

    def told(words):
        done = mounts.run([mounts.command("mount.daxfs"), "none", region.path, "-o", f"remount,{words}"])
        return done.stderr

    assert told(f"{asked},fsname={region.source},rw") == ""
    text = told("track=pte,flushers=2,nt_threshold=1k,drain=fsync,allow_other,auto_unmount,fsname=x,debug")
    assert text.startswith("mount.daxfs: a remount leaves these as they are: auto_unmount, debug, drain, "
                           "fsname, nt_threshold, track; daxfs set changes ")  # fmt: skip
    assert told("nt_threshold=256").endswith(": nt_threshold\n")
    facts = region.stat()["tracker"]
    assert (facts["policy"], facts["flushers"], facts["nt_threshold"]) == ("pmd", 2, 512)


def test_remount_refused(mount_factory, tmp_path):
    region = mount_factory(options="ro")
    assert "mounted read-only" in mount("none", region.path, "-o", "remount,rw", status=32)
    assert "ro" in options_of(region.path)
    assert "no daxfs" in mount("none", tmp_path, "-o", "remount,ro", status=32)


def test_read_only_changes_no_byte(mount_factory):
    region = mount_factory()
    (region.path / "file").write_text("x")
    region.kill()  # so that there is something to replay
    before = region.source.read_bytes()
    region.mount("ro")
    assert (region.path / "file").read_text() == "x"
    region.umount()
    assert region.source.read_bytes() == before


@pytest.fixture
def installed_links():
    """The links in /sbin, if nobody else has made them."""
    if any((links.Path(folder) / name).is_symlink()
           for folder, names in (("/sbin", links.SBIN), ("/usr/local/bin", links.BIN)) for name in names):
        yield
        return
    mounts.run([mounts.command("daxfs"), "install-links"])
    yield
    mounts.run([mounts.command("daxfs"), "install-links", "--remove"])
    assert not os.path.lexists("/sbin/mount.fuse.daxfs")


@pytest.mark.parametrize("kind", ["fuse.daxfs", "daxfs"])
def test_through_mount(region_factory, installed_links, kind):
    region = region_factory()
    mounts.run(["mount", "-t", kind, region.source, region.path, "-o", f"noatime,log_file={region.log_file}"])
    region.adopt()
    assert {"rw", "noatime"} <= options_of(region.path)
    mounts.run(["mount", "-o", "remount,ro", region.path])
    assert "ro" in options_of(region.path) and region.stat()["readonly"]
    mounts.run(["mount", "-o", "remount,rw", region.path])
    (region.path / "file").touch()
    region.umount()
    done = mounts.run(["mount", "-t", kind, region.source, region.path, "-o", "bogus"], check=False)
    assert done.returncode != 0 and "bogus" in done.stderr


def test_through_fstab(region_factory, installed_links, tmp_path):
    region = region_factory()
    table = tmp_path / "fstab"
    table.write_text(f"{region.source} {region.path} fuse.daxfs "
                     f"noatime,nofail,noauto,x-test,log_file={region.log_file} 0 0\n")
    mounts.run(["mount", "-T", table, region.path])
    region.adopt()
    assert "noatime" in options_of(region.path)


def test_install_links_leaves_others_alone(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "mkfs.daxfs").write_text("mine")
    where = ["--sbin", tmp_path, "--bin", tmp_path / "bin"]
    for extra, left in (([], set(links.SBIN)), (["--remove"], {"mkfs.daxfs"})):
        done = mounts.run([mounts.command("daxfs"), "install-links", *where, *extra], check=False)
        assert done.returncode == 1 and "left alone" in done.stderr
        assert {name for name in os.listdir(tmp_path) if name != "bin"} == left
    assert (tmp_path / "mkfs.daxfs").read_text() == "mine" and os.listdir(tmp_path / "bin") == []


def test_mountinfo_escapes(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text("36 35 0:98 / /mnt/a\\040b\\134 rw,noatime shared:1 "
                     "- fuse.daxfs /dev/x\\054y rw,user_id=7\n")
    (found,) = mountinfo.mounts(str(table))
    assert (found.mountpoint, found.source, found.owner) == ("/mnt/a b\\", "/dev/x,y", 7)
    assert found.device == os.makedev(0, 98) and "noatime" in found.options


def test_patience_has_an_end():
    tries = []

    def busy():
        tries.append(1)
        raise OSError(16, "busy")

    with pytest.raises(OSError, match="busy"):
        common.patiently(busy, 0.2)
    assert len(tries) > 1
    with pytest.raises(OSError, match="no"):
        common.patiently(lambda: (_ for _ in ()).throw(OSError(2, "no")), 60)


def test_nobody_may_not_ask(mount_factory):
    """The control socket answers the mount's owner and root alone."""
    region = mount_factory(options="allow_other")
    device = os.stat(region.path).st_dev
    path = f"/run/daxfs/{os.major(device)}-{os.minor(device)}.sock"
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.chmod(path, 0o666)
    ask = ("import socket,sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
           "s.sendall(b'{\"get\": \"stat\"}\\n')\nprint(s.makefile().readline())")
    user = pwd.getpwnam("nobody")
    handle = os.open(path, os.O_PATH)  # the way there, past the directory that is closed to others
    try:
        done = subprocess.run(["/usr/bin/python3", "-c", ask, f"/proc/self/fd/{handle}"], capture_output=True,
                              text=True, check=True, pass_fds=(handle,), user=user.pw_uid, group=user.pw_gid,
                              extra_groups=[])
    finally:
        os.close(handle)
    assert "only root and the mount's owner" in done.stdout and "pid" not in done.stdout
