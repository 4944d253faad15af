#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs from the distribution what building, mounting and testing daxfs need and what is not there yet.
# Debian 12, Debian 13, Ubuntu 24.04. Run as root, or with sudo at hand; does nothing where nothing is missing.
# `tools/setup.sh vm` adds what make test-vm needs (docs/vm.md).
set -eu

missing=""
need() { # need PACKAGE COMMAND-TEST...
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

need gcc command -v gcc
need libc6-dev test -e /usr/include/stdio.h
need pkg-config command -v pkg-config
need libfuse3-dev test -e /usr/include/fuse3/fuse_lowlevel.h
need fuse3 command -v fusermount3
need liburing-dev test -e /usr/include/liburing.h
need fio command -v fio
need xfsprogs command -v xfs_io
need e2fsprogs command -v mkfs.ext4
need attr command -v setfattr
need acl command -v setfacl
need stress-ng command -v stress-ng
need sqlite3 command -v sqlite3
need git command -v git
need rsync command -v rsync
need mandoc command -v mandoc
need libpmem-dev test -e /usr/include/libpmem.h
need python3 command -v python3
need python3-venv python3 -c 'import ensurepip, venv'
need python3-dev sh -c 'test -e "$(python3 -c "import sysconfig; print(sysconfig.get_path(\"include\"))")/Python.h"'
if [ "${1-}" = vm ]; then
    need qemu-system-x86 command -v qemu-system-x86_64
    need mmdebstrap command -v mmdebstrap
    need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
fi

[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: needs these packages (names as in Debian):$missing; install them and run this again" >&2
    exit 1
fi
sudo=""
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "setup: run as root (or install sudo): apt-get install$missing" >&2
        exit 1
    fi
    sudo=sudo
fi
echo "setup: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# hundreds of lines that nobody wants to see unless it fails
# shellcheck disable=SC2086 # $missing is a list of packages
if ! { $sudo apt-get -qq update &&
       $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing; } \
    >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup: the distribution's packages could not be installed" >&2
    exit 1
fi
