/* SPDX-License-Identifier: MIT
 *
 * What a client has of the kernel: a userfaultfd and a pagemap of its own process, the descriptors that
 * keep observed files open, and which files are of a daxfs mount.
 *
 * Descriptors are moved to high numbers, out of the way of programs that count on low ones. Limits: system
 * calls alone, made directly (lib.h). Everything but the look-ups of numbers is done under client_lock.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daxfs/client/lib.h"

/* linux/userfaultfd.h of 6.7; distributions that are built on have older ones. */
#define WP_HUGETLBFS_SHMEM (UINT64_C(1) << 12)
#define WP_UNPOPULATED (UINT64_C(1) << 13)
#define WP_ASYNC (UINT64_C(1) << 15)
#define SYS_pidfd_open_ 434
#define MFD_NOEXEC_SEAL_ 8u	/* linux/memfd.h of 6.3 */
#define WATCHES 16		/* daemons that answer our faults */
#define USER_MODE_ONLY 1
/* linux/stat.h of 6.8 */
#define STATX_DONT_SYNC 0x4000
#define STATX_TYPE_ 0x0001u
#define STATX_MOUNT 0x4000u		/* STATX_MNT_ID_UNIQUE */

#define HOLDERS 4096		/* as many as the daemon takes of one process */
#define FD_LIMIT 65536		/* higher ones are not asked for */

static int uffds[] = {[DAXFS_FAULT_KERNEL] = -1, [DAXFS_FAULT_USER] = -1}, pagemap = -1, owner;
/* `pid` 0: a free one. `ended`: its daemon has, its thread is about to, and who needs one takes it. */
static struct watch { int fd; int32_t pid; int ended; void (*gone)(int32_t pid); } watches[WATCHES];
static struct daxfs_progress *progress;
static int progress_fd = -1;
static struct { int fd, count; } holders[HOLDERS];
static uint64_t owned[FD_LIMIT / 64];

static int result(long r)
{
	return r < 0 ? -errno : (int)r;
}

static void mark(int fd, int on)
{
	if (fd < 0 || fd >= FD_LIMIT)
		return;
	if (on)
		__atomic_fetch_or(&owned[fd / 64], UINT64_C(1) << fd % 64, __ATOMIC_RELAXED);
	else
		__atomic_fetch_and(&owned[fd / 64], ~(UINT64_C(1) << fd % 64), __ATOMIC_RELAXED);
}

int kernel_owns(int fd)
{
	return fd >= 0 && fd < FD_LIMIT && __atomic_load_n(&owned[fd / 64], __ATOMIC_RELAXED) >> fd % 64 & 1;
}

/* A duplicate of `fd` with a high number, closed by exec, and known as ours. */
static int duplicate(int fd)
{
	struct rlimit limit;
	int low = 512, new = -1;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur / 2 < 512)
		low = limit.rlim_cur / 2;
	for (; new < 0 && low; low /= 2)
		new = result(syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, low));
	mark(new, 1);
	return new;
}

void kernel_drop(int *fd)
{
	if (*fd < 0)
		return;
	mark(*fd, 0);
	syscall(SYS_close, *fd);
	*fd = -1;
}

int kernel_high(int fd)
{
	int new;

	if (fd < 0)
		return -errno;
	new = duplicate(fd);
	syscall(SYS_close, fd);
	return new;
}

static int new_uffd(int mode)
{
	struct uffdio_api api = {UFFD_API, WP_UNPOPULATED | WP_HUGETLBFS_SHMEM, 0};
	int flags = O_CLOEXEC | O_NONBLOCK, fd, r = 0;

	if (mode == DAXFS_FAULT_USER) {
		/* Faults of system calls are answered by the daemon, too: that needs root, or a sysctl. */
		api.features |= UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
	} else {
		/* Write faults are resolved in the kernel, those of system calls too: no privilege is needed. */
		api.features |= WP_ASYNC;
		flags |= USER_MODE_ONLY;
	}
	fd = kernel_high(syscall(SYS_userfaultfd, flags));

	if (fd < 0)
		return fd;
	if (syscall(SYS_ioctl, fd, UFFDIO_API, &api))
		r = errno == EINVAL ? -EOPNOTSUPP : -errno;
	if (r) {
		kernel_drop(&fd);
		return r;
	}
	return fd;
}

/* For the daemon to read: so it has to be sure that it stays as long as it is. */
static int new_progress(void)
{
	const size_t size = DAXFS_PROGRESS_SLOTS * sizeof(*progress);
	int fd = kernel_high(syscall(SYS_memfd_create, "daxfs-progress",
				     MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL_)), r = 0;
	long at = 0;

	if (fd < 0)
		return fd;
	if (syscall(SYS_ftruncate, fd, size)
	    || syscall(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
	    || (at = syscall(SYS_mmap, NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == -1) {
		r = -errno;
		kernel_drop(&fd);
		return r;
	}
	progress = (struct daxfs_progress *)at;
	return fd;
}

int kernel_progress(void)
{
	return progress_fd;
}

void kernel_begins(int slot)
{
	/* Order: before the scan takes marks. Who looks and finds them gone sees that somebody has begun. */
	__atomic_fetch_add(&progress[slot].begun, 1, __ATOMIC_SEQ_CST);
}

void kernel_ends(int slot)
{
	__atomic_fetch_add(&progress[slot].ended, 1, __ATOMIC_SEQ_CST);
}

int kernel_daemon_has_flushed(int slot)
{
	const struct timespec ms = {.tv_nsec = 1000000};
	uint64_t taking = __atomic_load_n(&progress[slot].taking, __ATOMIC_SEQ_CST);
	int i;

	for (i = 0; i < 100; i++) {
		if (__atomic_load_n(&progress[slot].flushed, __ATOMIC_SEQ_CST) - taking <= INT64_MAX)
			return 1;
		syscall(SYS_nanosleep, &ms, NULL);
	}
	return 0;
}

int kernel_ready(int mode)
{
	int r;

	if (owner != getpid())
		kernel_forked();
	if (uffds[mode] < 0) {
		r = new_uffd(mode);
		if (r < 0)
			return r;
		uffds[mode] = r;
	}
	if (pagemap < 0) {
		/* Opened early: a process that gives up privileges may not open it afterwards. */
		r = kernel_high(syscall(SYS_openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0));
		if (r < 0)
			return r;
		pagemap = r;
	}
	if (progress_fd < 0) {
		r = new_progress();
		if (r < 0)
			return r;
		progress_fd = r;
	}
	return 0;
}

static void let_watch_go(struct watch *w)
{
	if (w->pid)
		kernel_drop(&w->fd);
	w->pid = 0;
}

void kernel_forked(void)
{
	int i;

	kernel_drop(&uffds[DAXFS_FAULT_KERNEL]);
	kernel_drop(&uffds[DAXFS_FAULT_USER]);
	kernel_drop(&pagemap);
	kernel_drop(&progress_fd);
	if (progress)	/* shared with the parent, who counts in it */
		syscall(SYS_munmap, progress, DAXFS_PROGRESS_SLOTS * sizeof(*progress));
	progress = NULL;
	for (i = 0; i < WATCHES; i++)	/* their threads are the parent's */
		let_watch_go(&watches[i]);
	owner = getpid();
}

int kernel_is_owner(void)
{
	return owner == getpid();
}

int kernel_uffd(int mode)
{
	return uffds[mode];
}

int kernel_pagemap(void)
{
	return pagemap;
}

int kernel_register(int mode, uintptr_t start, uintptr_t end)
{
	struct uffdio_register r = {{start, end - start}, UFFDIO_REGISTER_MODE_WP, 0};

	if (mode == DAXFS_FAULT_USER)
		r.mode |= UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
	return result(syscall(SYS_ioctl, uffds[mode], UFFDIO_REGISTER, &r));
}

void kernel_unregister(int mode, uintptr_t start, uintptr_t end)
{
	struct uffdio_range r = {start, end - start};

	syscall(SYS_ioctl, uffds[mode], UFFDIO_UNREGISTER, &r);
}

int kernel_protect(int mode, uintptr_t start, uintptr_t end, int on)
{
	struct uffdio_writeprotect w = {{start, end - start}, on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
	int r;

	do
		r = result(syscall(SYS_ioctl, uffds[mode], UFFDIO_WRITEPROTECT, &w));
	while (r == -EAGAIN);
	return r;
}

int kernel_hold(int fd)
{
	int i, n = 0, free_ = -1, new;

	for (i = 0; i < HOLDERS; i++) {
		n += holders[i].count > 0;
		if (!holders[i].count && free_ < 0)
			free_ = i;
	}
	if (free_ < 0)
		return -ENOSPC;
	/* A program may close what it has mapped, and count on the descriptor. */
	if (n >= kernel_room(HOLDERS))
		return -EMFILE;
	i = free_;
	new = duplicate(fd);
	if (new < 0)
		return new;
	holders[i].fd = new;
	holders[i].count = 1;
	return i;
}

int kernel_held(int holder)
{
	return holders[holder].fd;
}

void kernel_share(int holder)
{
	holders[holder].count++;
}

void kernel_let_go(int holder)
{
	if (!--holders[holder].count)
		kernel_drop(&holders[holder].fd);
}

int kernel_make_coarse(int fd)
{
	char path[32];
	int new;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	new = result(syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0));
	if (new < 0)
		return new;
	syscall(SYS_close, new);
	return 0;
}

int kernel_room(int most)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur / 4 < (rlim_t)most)
		return limit.rlim_cur / 4;
	return most;
}

int kernel_threads(void)
{
	int ours = 0, i;
	struct stat st;

	/* One that is about to end counts as the program's: too many do no harm. */
	for (i = 0; i < WATCHES; i++)
		ours += watches[i].pid && !__atomic_load_n(&watches[i].ended, __ATOMIC_ACQUIRE);
	return stat("/proc/self/task", &st) ? 2 : (int)st.st_nlink - 2 - ours;
}

static void *watch(void *arg)
{
	struct watch *w = arg;
	struct pollfd end = {.fd = w->fd, .events = POLLIN};

	while (poll(&end, 1, -1) < 1)
		;
	w->gone(w->pid);
	/* The last look at it: who finds this gives it to another thread. */
	__atomic_store_n(&w->ended, 1, __ATOMIC_RELEASE);
	return NULL;
}

int kernel_watch(int32_t pid, void (*gone)(int32_t pid))
{
	struct watch *w = NULL;
	sigset_t all, old;
	pthread_t thread;
	int i, r;

	for (i = 0; i < WATCHES; i++) {
		if (__atomic_load_n(&watches[i].ended, __ATOMIC_ACQUIRE))
			let_watch_go(&watches[i]);
		if (watches[i].pid == pid)
			return 0;
		if (!watches[i].pid)
			w = &watches[i];
	}
	if (!w)
		return -EAGAIN;
	r = kernel_high(syscall(SYS_pidfd_open_, pid, 0));
	if (r < 0)
		return r;
	*w = (struct watch){r, pid, 0, gone};
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(&thread, NULL, watch, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r) {
		let_watch_go(w);
		return r;
	}
	pthread_detach(thread);
	return 0;
}

int kernel_msync(uintptr_t start, uintptr_t end, int flags)
{
	return result(syscall(SYS_msync, start, end - start, flags));
}

/* struct statx of 6.8, which is in no header that is built with. */
struct facts {
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, pad;
	uint64_t ino, size, blocks, attributes_mask, times[8];
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t mount;
	uint64_t spare[13];
};
_Static_assert(sizeof(struct facts) == 256, "struct statx");

/* One line of mountinfo: 1 or 0 if it is of this device and daxfs's or not, else -1. */
static int line_says(const char *line, const char *device)
{
	const char *type = strstr(line, " - ");

	if (!type || !strstr(line, device))
		return -1;
	type += 3;
	return !strncmp(type, "fuse.daxfs ", 11) || !strncmp(type, "daxfs ", 6);
}

/* Whether the mount of this device is daxfs's: 1, 0, or -1 where it is not in sight (another name
 * space). */
static int mount_is_daxfs(unsigned major, unsigned minor)
{
	char text[4096], device[32], *end;
	int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/mountinfo", O_RDONLY | O_CLOEXEC, 0), answer = -1;
	size_t have = 0;
	ssize_t n;

	if (fd < 0)
		return -1;
	snprintf(device, sizeof(device), " %u:%u ", major, minor);
	while (answer < 0 && (n = syscall(SYS_read, fd, text + have, sizeof(text) - 1 - have)) > 0) {
		have += n;
		text[have] = 0;
		while (answer < 0 && (end = strchr(text, '\n'))) {
			*end++ = 0;
			answer = line_says(text, device);
			have -= end - text;
			memmove(text, end, have + 1);
		}
		if (have == sizeof(text) - 1)	/* longer than a path may be: not ours */
			have = 0;
	}
	syscall(SYS_close, fd);
	return answer;
}

/*
 * The mounts that were met last. By their unique number, which is never used again: device numbers are, as
 * soon as something else is mounted. An entry is one word: number * 2 + answer.
 */
static uint64_t met[64];

static int is_daxfs(int fd)
{
	struct facts st;
	uint64_t known, *entry;
	int answer;

	/* What the kernel knows by itself: no request goes to a daemon, ours or another's. */
	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | STATX_DONT_SYNC, STATX_TYPE_ | STATX_MOUNT, &st))
		return 0;
	if (!S_ISREG(st.mode) || !(st.mask & STATX_MOUNT))	/* before 6.8: nothing is mapped directly */
		return 0;
	entry = &met[st.mount % 64];
	known = __atomic_load_n(entry, __ATOMIC_RELAXED);
	if (known && known >> 1 == st.mount)
		return known & 1;
	answer = mount_is_daxfs(st.dev_major, st.dev_minor);
	if (answer < 0)
		return 1;	/* the question about the file will tell, each time */
	__atomic_store_n(entry, st.mount << 1 | answer, __ATOMIC_RELAXED);
	return answer;
}

static int ask_about(int fd, struct daxfs_about *about)
{
	memset(about, 0, sizeof(*about));
	return is_daxfs(fd) ? result(syscall(SYS_ioctl, fd, DAXFS_IOC_ABOUT, about)) : -ENOTTY;
}

static int ask_observe(int fd, struct daxfs_observe *request)
{
	return result(syscall(SYS_ioctl, fd, DAXFS_IOC_OBSERVE, request));
}

static int ask_forget(int fd, const struct daxfs_forget *request)
{
	return result(syscall(SYS_ioctl, fd, DAXFS_IOC_FORGET, request));
}

struct client_daemon client_daemon = {is_daxfs, ask_about, ask_observe, ask_forget};
