# SPDX-License-Identifier: MIT
"""The parser of mount options, and what libfuse is told of them."""

import os

import pytest

from daxfs.errors import UsageError
from daxfs.fuse import options


def test_defaults():
    config = options.parse("")
    assert (config.write, config.drain, config.track, config.flush) == ("nt", "write", "pte", "auto")
    assert (config.atime, config.dax, config.transport) == ("relatime", "inode", "auto")
    assert not config.readonly


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("ro", "readonly", True), ("ro,rw", "readonly", False), ("ro,defaults", "readonly", False),
        ("write=cached", "write", "cached"), ("drain=fsync", "drain", "fsync"),
        ("drain=fsync,sync", "drain", "write"), ("flush=msync", "flush", "msync"),
        ("granularity=page", "granularity", "page"), ("transport=pyfuse3", "transport", "pyfuse3"),
        ("transport=uring", "transport", "uring"), ("transport=uring,transport=dev", "transport", "dev"),
        ("dax=never", "dax", "never"), ("dax=always", "dax", "always"), ("dax", "dax", "always"),
        ("dax,dax=inode", "dax", "inode"), ("flushers=1,threads=1", "flushers", 1), ("", "threads", None),
        ("", "nt_threshold", None), ("nt_threshold=0,write=cached", "nt_threshold", 0),
        ("nt_threshold=4096", "nt_threshold", 4096),
        ("threads=64", "threads", 64), ("threads=4,transport=dev", "threads", 4),
        ("transport=uring,threads=2,transport=dev", "threads", 2),
        ("noatime", "atime", "noatime"), ("norelatime", "atime", "strictatime"),
        ("noatime,relatime", "atime", "relatime"), ("nodiratime", "nodiratime", True),
        ("nodiratime,diratime", "nodiratime", False), ("lazytime", "lazytime", True),
        ("nt_threshold=64k", "nt_threshold", 65536), ("nt_threshold=1G", "nt_threshold", 1 << 30),
        ("nt_threshold=3", "nt_threshold", 3),
        ("lazytime,nolazytime", "lazytime", False), ("uid=0", "uid", 0),
        ("gid=4294967294", "gid", 4294967294),
        ("fsname=x", "fsname", "x"), ("debug", "log_level", "debug"), ("remount", "remount", True),
        ("log_file=/tmp/x", "log_file", "/tmp/x"), ("record=/tmp/../x", "record", "/x"),
        ("record=/a,record=/b", "record", "/b"), ("", "emulate", "none"),
        ("emulate=pmem1", "emulate", "pmem1"),
        ("emulate=pmem1,emulate=none", "emulate", "none"), ("emulate=/a/../b", "emulate", "/b"),
    ],
)  # fmt: skip
def test_option_sets(text, name, value):
    assert getattr(options.parse(text), name) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bogus", ["unknown", "'bogus'"]), ("bogus=1", ["unknown", "'bogus'"]),
        ("write=fast", ["write=fast", "nt, cached"]), ("write", ["'write'", "needs a value"]),
        ("ro=1", ["'ro'", "takes no value"]), ("uid=-1", ["uid=-1"]), ("uid=root", ["uid=root"]),
        ("gid=4294967295", ["gid=4294967295"]), ("flushers=0", ["flushers=0"]), ("threads=x", ["threads=x"]),
        ("dax=yes", ["dax=yes", "inode, always, never"]), ("track=", ["is unknown"]),
        ("track=xfs", ["track=xfs", "pte, pmd, line, extent, extent+clear, none"]),
        ("transport=tcp", ["transport=tcp", "auto, uring, dev, pyfuse3"]), ("threads=0", ["threads=0"]),
        ("flushers=17", ["at most 16"]), ("threads=65", ["at most 64"]),
        ("nt_threshold=-1", ["nt_threshold=-1", "not a number of bytes"]), ("nt_threshold", ["a value"]),
        ("nt_threshold=2000000000", ["up to 1073741824"]), ("nt_threshold=64x", ["not a number of bytes"]),
        ("nt_threshold=2G", ["up to 1073741824"]), ("nt_threshold=k", ["not a number of bytes"]),
        ("nt_threshold=4kb", ["not a number of bytes"]), ("nt_threshold=\u0664", ["not a number of bytes"]),
        ("write=cached,nt_threshold=64", ["nt_threshold=64", "write=cached"]),
        ("transport=uring,threads=2", ["transport=uring", "one for each CPU", "transport=dev"]),
        ("threads=1,transport=pyfuse3", ["transport=pyfuse3", "transport=dev"]),
        ("max_read=4096", ["max_read"]), ("subtype=other", ["fuse.daxfs"]), ("log_file=", ["log_file"]),
        ("record=", ["record= needs a path"]), ("record", ["'record'", "needs a value"]),
        ("emulate=", ["emulate= needs the name"]), ("emulate", ["'emulate'", "needs a value"]),
        ("user_id=0", ["unknown", "'user_id'"]), ("log_level=loud", ["log_level=loud"]),
    ],
)  # fmt: skip
def test_refused_and_named(text, words):
    with pytest.raises(UsageError) as caught:
        options.parse(f"noatime,{text},rw")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("word", ["auto", "noauto", "user", "users", "nofail", "_netdev", "owner", "user=me",
                                  "X-mount.mkdir=0755", "comment=a b", "x-systemd.automount"])
def test_swallowed(word):
    config = options.parse(f"ro,{word}")
    assert config.ignored == [word] and config.readonly
    assert word not in " ".join(options.fuse_arguments(config))


def test_sloppy_forgives_the_unknown_only():
    assert options.parse("bogus=1,ro", sloppy=True).ignored == ["bogus=1"]
    with pytest.raises(UsageError):
        options.parse("write=fast", sloppy=True)


def test_what_a_fuse_mount_shows_is_taken_back_on_remount():
    text = "rw,noatime,user_id=0,group_id=0,default_permissions,allow_other,remount"
    assert options.parse(text).atime == "noatime"
    # An fstab line of a mount that an older version accepted; a remount leaves drain= as it is.
    assert options.parse("remount,ro,write=cached,drain=fsync").readonly


@pytest.mark.parametrize("text", ["ro,noatime,write=cached,uid=3", "allow_other,sync,noexec", "",
                                  "write=cached,sync",
                                  "lazytime,nodiratime,drain=fsync,nosuid,nodev", "transport=dev,threads=3",
                                  r"record=/a\,b\\c,log_file=/d\,e",
                                  r"emulate=/a\,b", "emulate=cxl"])
def test_description_is_understood_again(text):
    first = options.parse(text)
    again = options.parse(first.describe())
    assert again.describe() == first.describe()
    for name in ("readonly", "atime", "write", "drain", "lazytime", "nodiratime", "uid", "flags", "log_file",
                 "record", "transport", "threads", "emulate"):
        assert getattr(again, name) == getattr(first, name), name


def test_commas_and_backslashes():
    assert options.split(r"a,b=c\,d,,e\\,") == ["a", "b=c,d", "e\\"]
    config = options.parse("")
    config.sources = ["/x,y", "/z\\"]
    assert options.fuse_arguments(config)[0] == "fsname=/x\\,y\\,/z\\\\"


def test_libfuse_arguments():
    config = options.parse("ro,noatime,nodiratime,nosuid,noexec,allow_other,allow_root,nofail,write=cached")
    config.fsname = "ä\udcff"
    found = options.fuse_arguments(config)
    assert {"subtype=daxfs", "default_permissions", "ro", "noatime", "nodiratime", "nosuid", "noexec",
            "allow_other"} <= set(found)
    assert not {"allow_root", "write=cached", "nofail", "rw"} & set(found)
    # pyfuse3 encodes each argument as us-ascii; ours keep any byte that a path has.
    assert found[0].encode("us-ascii") == b"fsname=\xc3\xa4\xff"


def test_root_gets_devices_and_set_id_bits():
    assert options.default_flags(0) == {"suid": True, "dev": True} and options.default_flags(1000) == {}


def test_source_list(tmp_path):
    odd = tmp_path / "a,b"
    odd.touch()
    assert options.source_list(str(odd)) == [str(odd)]
    assert options.source_list(f"{tmp_path}/c,{tmp_path}/d/") == [f"{tmp_path}/c", f"{tmp_path}/d/"]
    with pytest.raises(UsageError):
        options.source_list(",")
    assert os.path.basename(options.source_list("one")[0]) == "one"
