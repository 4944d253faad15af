#!/bin/sh
# SPDX-License-Identifier: MIT
# The guest's init, process 1: mounts, loads the modules of the devices, runs the cases, switches the guest off.
export PATH=/opt/daxfs/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export PYTHONPATH=/checkout:/checkout/tests PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing
for directory in /tmp /run /dev/shm; do
    mkdir -p "$directory"
    mount -t tmpfs -o mode=1777 tmpfs "$directory"
done
mkdir -p /dev/pts /pmem
mount -t devpts devpts /dev/pts
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
# Without udev: what is found brings up further devices.
for round in 1 2 3; do
    find /sys/devices -name modalias -exec cat {} + | sort -u | xargs modprobe -aqb 2>/dev/null
done
cd /checkout && python -P -m guest
echo "guest: status $?; switching off"
sync
echo o > /proc/sysrq-trigger
sleep 60
