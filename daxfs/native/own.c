/* SPDX-License-Identifier: MIT
 *
 * Storage of own ranges (own.h): fallocate, ftruncate and lseek on the range's file, and the extents that
 * say what is known of it. The file offset of the descriptor is used by lseek alone and means nothing.
 *
 * On fsdax, fallocate (XFS: all of it, ext4: a hole) and ftruncate wait until nobody has a page of the file
 * pinned. A write(2) whose buffer is a mapping of the very file it goes to has pinned some until we answer,
 * so what a write needs must not wait: there write(2) makes the file longer, a fault gives storage inside it.
 * All else waits for PATIENCE at most (`change`): the kernel waits before it changes anything, and signals
 * end that (dax_break_layout; ext4_break_layouts and xfs_break_dax_layouts before Linux 6.15).
 */
#define _GNU_SOURCE
#include "daxfs/native/own.h"

#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define PAGE_SIZE (UINT64_C(1) << DAXFS_PAGE_SHIFT)
#define SYS_CACHESTAT 451		/* Linux 6.5; the headers are older */
#define BYTES(pages) ((off_t)((pages) << DAXFS_PAGE_SHIFT))
#define CUT (-1)			/* in place of a mode of fallocate(2): ftruncate(2) */
#define MS INT64_C(1000000)
#define PATIENCE (10 * MS)		/* for pinned pages, ns: the file's lock is held all the time */

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static int is_dax(int fd)
{
	struct statx st;

	return !statx(fd, "", AT_EMPTY_PATH, 0, &st) && st.stx_attributes & STATX_ATTR_DAX;
}

static void wake(int number)
{
	/* Nothing: it only makes a system call return EINTR. */
	(void)number;
}

/* As transport.c has it, with which it is shared: whoever installs it first, it does nothing. */
static void catch_wakes(void)
{
	struct sigaction sa = {.sa_handler = wake};

	sigaction(SIGURG, &sa, NULL);
}

static int64_t monotonic(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 * MS + now.tv_nsec;
}

/* From `until` on, SIGURG for this thread each millisecond: the first may come before the system call that it
 * shall end. 0 or -errno. */
struct alarm {
	int64_t until;
	int timer;			/* the kernel's number: before glibc 2.34 its own need librt */
	sigset_t urgent, before;
};

static int alarm_begin(struct alarm *a)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGURG};
	struct itimerspec when = {.it_value = {0, PATIENCE}, .it_interval = {0, MS}};

	pthread_once(&once, catch_wakes);
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &a->timer))
		return -errno;
	a->until = monotonic() + PATIENCE;
	sigemptyset(&a->urgent);
	sigaddset(&a->urgent, SIGURG);
	pthread_sigmask(SIG_UNBLOCK, &a->urgent, &a->before);	/* native threads block it */
	syscall(SYS_timer_settime, a->timer, 0, &when, NULL);
	return 0;
}

static void alarm_end(struct alarm *a)
{
	struct timespec now = {0, 0};

	/* In this order none is left that would end another system call. */
	pthread_sigmask(SIG_BLOCK, &a->urgent, NULL);
	syscall(SYS_timer_delete, a->timer);
	while (sigtimedwait(&a->urgent, NULL, &now) > 0)
		;
	pthread_sigmask(SIG_SETMASK, &a->before, NULL);
}

/* fallocate(2), or with CUT ftruncate(2) to `pos`. -ETXTBSY: on fsdax, where somebody has a page of the file
 * pinned, and still had after PATIENCE; nothing has changed then. */
static int change(int fd, int syncs, int mode, off_t pos, off_t length)
{
	int rc, waits = syncs && is_dax(fd);	/* tmpfs is not asked */
	struct alarm a;

	if (waits && (rc = alarm_begin(&a)))
		return rc;
	do
		rc = (mode == CUT ? ftruncate(fd, pos) : fallocate(fd, mode, pos, length)) ? -errno : 0;
	while (rc == -EINTR && !(waits && monotonic() >= a.until));
	if (waits)
		alarm_end(&a);
	return rc == -EINTR ? -ETXTBSY : rc;
}

static int falloc(const struct own_range *o, int mode, off_t pos, off_t length)
{
	return change(o->fd, o->syncs, mode, pos, length);
}

/*
 * falloc() piece by piece, for what has no storage. XFS wants blocks for the whole length before it looks:
 * with none left it says ENOSPC though all of it, or most, has storage. FIEMAP tells which.
 */
static int reserve_rest(const struct own_range *o, off_t pos, off_t end)
{
	struct {
		struct fiemap map;
		struct fiemap_extent extent[1];
	} ask;
	off_t at;
	int rc = 0;

	while (pos < end && !rc) {
		memset(&ask, 0, sizeof(ask));
		ask.map = (struct fiemap){.fm_start = pos, .fm_length = end - pos, .fm_extent_count = 1};
		if (ioctl(o->fd, FS_IOC_FIEMAP, &ask))
			return -ENOSPC;
		at = ask.map.fm_mapped_extents ? (off_t)ask.extent[0].fe_logical : end;
		if (at > pos)
			rc = falloc(o, FALLOC_FL_KEEP_SIZE, pos, at - pos);
		pos = at < end ? at + (off_t)ask.extent[0].fe_length : end;
	}
	return rc;
}

/* Storage for [pos, end); without FALLOC_FL_KEEP_SIZE the file is at least that long then. */
static int allocate(const struct own_range *o, int mode, off_t pos, off_t end)
{
	struct stat now;
	int rc = falloc(o, mode, pos, end - pos);

	if (rc != -ENOSPC)
		return rc;
	rc = reserve_rest(o, pos, end);
	if (rc || mode & FALLOC_FL_KEEP_SIZE)
		return rc;
	if (fstat(o->fd, &now))
		return -errno;
	return now.st_size < end ? falloc(o, CUT, end, 0) : 0;
}

/* Does fallocate wait for pinned pages? */
static int allocation_waits(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == XFS_SUPER_MAGIC && is_dax(fd);
}

/* Zeros in [pos, end), by as few calls as can be: one allocation each. */
static int write_zeros(int fd, off_t pos, off_t end)
{
	static const char zeros[64 << 10];
	struct iovec part[64];
	off_t left;
	ssize_t done;
	int n;

	while (pos < end) {
		for (n = 0, left = end - pos; left > 0 && n < 64; n++, left -= (off_t)sizeof(zeros))
			part[n] = (struct iovec){(char *)zeros, smaller((uint64_t)left, sizeof(zeros))};
		done = pwritev(fd, part, n, pos);
		if (done < 0 && errno != EINTR)
			return -errno;
		pos += done > 0 ? done : 0;
	}
	return 0;
}

/* Storage for [pos, end), inside the file, by write faults: what a program stores meanwhile stays. */
static int fault_in(int fd, off_t pos, off_t end)
{
	size_t size = (size_t)(end - pos);
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, pos);
	int rc;

	if (at == MAP_FAILED)
		return -errno;
	do
		rc = madvise(at, size, MADV_POPULATE_WRITE) ? -errno : 0;
	while (rc == -EINTR);
	munmap(at, size);
	return rc == -EFAULT ? -ENOSPC : rc;	/* in place of SIGBUS, which a full file system gives */
}

static int synced(const struct own_range *o)
{
	if (!o->syncs)
		return 0;
	if (fdatasync(o->fd))
		return -errno;
	own_note(o, "sync", 0, 0);
	return 0;
}

/* One extent for [first, last) and what touches it; or, without `data`, none. 0 or -ENOMEM. */
static int know(struct filemap *f, uint64_t first, uint64_t last, int data)
{
	uint64_t pfn = f->own->pfn, low = first, high = last;
	struct iomap new[2];
	size_t from, to, n = 0;

	from = filemap_find(f, data && first ? first - 1 : first);
	for (to = from; to < f->n && f->e[to].pgoff < last + !!data; to++) {
		low = smaller(low, f->e[to].pgoff);
		high = larger(high, f->e[to].pgoff + f->e[to].len);
	}
	if (data) {
		new[n++] = (struct iomap){low, high - low, pfn + low, IOMAP_MAPPED, 0};
	} else {
		if (low < first)
			new[n++] = (struct iomap){low, first - low, pfn + low, IOMAP_MAPPED, 0};
		if (high > last)
			new[n++] = (struct iomap){last, high - last, pfn + last, IOMAP_MAPPED, 0};
	}
	return filemap_splice(f, from, to - from, new, n);
}

/* Storage for what of [first, last) no extent covers. */
static int allocate_holes(struct filemap *f, uint64_t first, uint64_t last, int keep_size)
{
	struct iomap m;
	uint64_t end;
	int fd = f->own->fd, rc = 0, mode = keep_size ? FALLOC_FL_KEEP_SIZE : 0;
	int waits = f->own->syncs && allocation_waits(fd);	/* tmpfs is not asked */

	if (waits && last > f->own->pages) {
		/* Nobody can have stored there. */
		rc = write_zeros(fd, BYTES(larger(first, f->own->pages)), BYTES(last));
		last = f->own->pages;
	}
	for (; first < last && !rc; first = end) {
		filemap_lookup(f, first, &m);
		end = smaller(m.pgoff + m.len, last);
		if (m.type != IOMAP_HOLE)
			continue;
		rc = waits ? fault_in(fd, BYTES(first), BYTES(end))
			   : allocate(f->own, mode, BYTES(first), BYTES(end));
	}
	return rc;
}

int own_cover(struct filemap *f, uint64_t first, uint64_t last)
{
	struct own_range *o = f->own;
	int rc;

	if (first >= last)
		return 0;
	if (!o->pfn || last > o->room)
		return -E2BIG;
	rc = allocate_holes(f, first, last, last <= o->pages);
	if (!rc && last > o->pages) {
		/* An extent behind the end of the file can't be, so the last hole made it this long. */
		o->pages = last;
		own_note(o, "size", last << DAXFS_PAGE_SHIFT, 0);
	}
	if (!rc)
		rc = synced(o);
	return rc ? rc : know(f, first, last, 1);
}

int own_reserve(struct filemap *f, uint64_t first, uint64_t last)
{
	struct own_range *o = f->own;
	uint64_t inside = smaller(last, smaller(o->pages, o->room));	/* what has no address has no extent */
	int rc = first < last ? allocate(o, FALLOC_FL_KEEP_SIZE, BYTES(first), BYTES(last)) : 0;

	if (!rc)
		rc = synced(o);
	if (rc || !o->pfn || first >= inside)
		return rc;
	return know(f, first, inside, 1);
}

int own_learn(struct filemap *f, uint64_t first, uint64_t last, unsigned runs)
{
	struct own_range *o = f->own;
	off_t data, hole;
	int rc;

	if (!o->pfn)
		return -E2BIG;
	last = smaller(last, smaller(o->pages, o->room));
	if (first >= last)
		return 0;
	rc = know(f, first, last, 0);
	for (; !rc && runs && first < last; runs--, first = (uint64_t)hole >> DAXFS_PAGE_SHIFT) {
		data = lseek(o->fd, BYTES(first), SEEK_DATA);
		if (data < 0)
			return errno == ENXIO ? 0 : -errno;
		hole = lseek(o->fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		/* Only pages that are data as a whole: a file system may tell of smaller blocks. */
		data = (data + (off_t)PAGE_SIZE - 1) & -(off_t)PAGE_SIZE;
		hole = smaller((uint64_t)hole, (uint64_t)BYTES(last)) & -PAGE_SIZE;
		if (data < hole)
			rc = know(f, (uint64_t)data >> DAXFS_PAGE_SHIFT, (uint64_t)hole >> DAXFS_PAGE_SHIFT, 1);
		else
			hole = data + (off_t)PAGE_SIZE;
	}
	return rc;
}

int64_t own_cached(int fd, uint64_t first, uint64_t last)
{
	uint64_t where[2] = {(uint64_t)BYTES(first), (uint64_t)BYTES(last - first)};
	uint64_t found[5] = {0};	/* struct cachestat: in the cache, dirty, being written, evicted, ... lately */

	if (first >= last)
		return 0;		/* to the kernel a length of 0 is all of the file */
	if (syscall(SYS_CACHESTAT, fd, where, found, 0))
		return -errno;
	return (int64_t)(found[0] + found[3]);
}

int own_look(struct filemap *f, uint64_t first, uint64_t last)
{
	int64_t found = own_cached(f->own->fd, first, last);
	int rc;

	if (found < 0)
		return (int)found;
	if ((uint64_t)found < last - first)
		return found > 0;
	rc = f->own->pfn && last <= smaller(f->own->pages, f->own->room) ? know(f, first, last, 1) : 0;
	return rc ? rc : 2;
}

int own_settle(int fd, int syncs)
{
	struct stat now;
	int rc;

	if (!syncs || !is_dax(fd))
		return 0;
	if (fstat(fd, &now))
		return -errno;
	rc = change(fd, syncs, CUT, now.st_size, 0);
	if (!rc) {
		/* Nothing was stored: the time of the last store through a mapping stays what it was. */
		struct timespec times[2] = {now.st_atim, now.st_mtim};

		rc = futimens(fd, times) ? -errno : 0;
	}
	return rc;
}

int own_shorten(int fd, int syncs, uint64_t size)
{
	return change(fd, syncs, CUT, (off_t)size, 0);
}

int own_resize(struct filemap *f, uint64_t pages)
{
	struct own_range *o = f->own;
	struct stat now;
	int rc;

	if (pages < o->pages) {
		rc = know(f, pages, DAXFS_MAX_PGOFF, 0);
		if (rc)
			return rc;
	}
	rc = falloc(o, CUT, BYTES(pages), 0);
	if (rc == -ETXTBSY && !fstat(o->fd, &now))	/* an allocation that failed may have made it longer */
		o->pages = (uint64_t)now.st_size >> DAXFS_PAGE_SHIFT;
	if (rc)
		return rc;
	o->pages = pages;
	own_note(o, "size", pages << DAXFS_PAGE_SHIFT, 0);
	return 0;
}

/* Zeros in a piece of one page, inside the file. A hole stays one. */
static int zero_piece(const struct own_range *o, off_t pos, off_t end)
{
	off_t data;

	if (!o->syncs || !is_dax(o->fd))
		return falloc(o, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, pos, end - pos);
	end = (off_t)smaller((uint64_t)end, (uint64_t)BYTES(o->pages));
	data = lseek(o->fd, pos & -(off_t)PAGE_SIZE, SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? 0 : -errno;
	return data < end ? write_zeros(o->fd, pos, end) : 0;
}

int own_punch(struct filemap *f, uint64_t pos, uint64_t end)
{
	uint64_t first = (pos + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT, last = end >> DAXFS_PAGE_SHIFT;
	int rc = 0;

	if (first < last)
		rc = know(f, first, last, 0);
	if (!rc && pos < end && pos >> DAXFS_PAGE_SHIFT == (end - 1) >> DAXFS_PAGE_SHIFT)
		rc = zero_piece(f->own, (off_t)pos, (off_t)end);
	else if (!rc && pos < end)
		rc = falloc(f->own, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)pos, (off_t)(end - pos));
	if (!rc && pos < end)
		own_note(f->own, "zero", pos, end - pos);
	return rc;
}

int own_read(const struct filemap *f, uint64_t pos, uint64_t size, char *target)
{
	ssize_t n;

	for (; size; pos += (uint64_t)n, target += n, size -= (uint64_t)n) {
		n = pread(f->own->fd, target, size, (off_t)pos);
		if (n < 0) {
			if (errno != EINTR)
				return -errno;
			n = 0;
		} else if (!n) {
			/* Inside the inode, but the range ends before it: damaged. Zeros would be an invention. */
			return -EIO;
		}
	}
	return 0;
}

int64_t own_seek(const struct filemap *f, uint64_t pos, int data)
{
	off_t at = lseek(f->own->fd, (off_t)pos, data ? SEEK_DATA : SEEK_HOLE);

	if (at < 0)
		return errno == ENXIO ? (int64_t)f->size : -errno;
	return (int64_t)smaller((uint64_t)at, f->size);
}
