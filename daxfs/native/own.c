/* SPDX-License-Identifier: MIT
 *
 * Storage of own ranges (own.h): fallocate, ftruncate and lseek on the range's file, and the extents that
 * say what is known of it. The file offset of the descriptor is used by lseek alone and means nothing.
 *
 * On fsdax, fallocate (XFS: all of it, ext4: a hole) and ftruncate wait until nobody has a page of the file
 * pinned. A write(2) whose buffer is a mapping of the very file it goes to has pinned some until we answer,
 * so what a write needs must not wait: there write(2) makes the file longer, a fault gives storage inside it.
 */
#define _GNU_SOURCE
#include "daxfs/native/own.h"

#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define PAGE_SIZE (UINT64_C(1) << DAXFS_PAGE_SHIFT)
#define SYS_CACHESTAT 451		/* Linux 6.5; the headers are older */
#define BYTES(pages) ((off_t)((pages) << DAXFS_PAGE_SHIFT))

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static int falloc(int fd, int mode, off_t pos, off_t length)
{
	int rc;

	do
		rc = fallocate(fd, mode, pos, length);
	while (rc && errno == EINTR);
	return rc ? -errno : 0;
}

/*
 * falloc() piece by piece, for what has no storage. XFS wants blocks for the whole length before it looks:
 * with none left it says ENOSPC though all of it, or most, has storage. FIEMAP tells which.
 */
static int reserve_rest(int fd, off_t pos, off_t end)
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
		if (ioctl(fd, FS_IOC_FIEMAP, &ask))
			return -ENOSPC;
		at = ask.map.fm_mapped_extents ? (off_t)ask.extent[0].fe_logical : end;
		if (at > pos)
			rc = falloc(fd, FALLOC_FL_KEEP_SIZE, pos, at - pos);
		pos = at < end ? at + (off_t)ask.extent[0].fe_length : end;
	}
	return rc;
}

/* Storage for [pos, end); without FALLOC_FL_KEEP_SIZE the file is at least that long then. */
static int allocate(int fd, int mode, off_t pos, off_t end)
{
	struct stat now;
	int rc = falloc(fd, mode, pos, end - pos);

	if (rc != -ENOSPC)
		return rc;
	rc = reserve_rest(fd, pos, end);
	if (rc || mode & FALLOC_FL_KEEP_SIZE)
		return rc;
	if (fstat(fd, &now) || (now.st_size < end && ftruncate(fd, end)))
		return -errno;
	return 0;
}

static int is_dax(int fd)
{
	struct statx st;

	return !statx(fd, "", AT_EMPTY_PATH, 0, &st) && st.stx_attributes & STATX_ATTR_DAX;
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
		rc = waits ? fault_in(fd, BYTES(first), BYTES(end)) : allocate(fd, mode, BYTES(first), BYTES(end));
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
	int rc = first < last ? allocate(o->fd, FALLOC_FL_KEEP_SIZE, BYTES(first), BYTES(last)) : 0;

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

int own_resize(struct filemap *f, uint64_t pages)
{
	struct own_range *o = f->own;
	int rc;

	if (pages < o->pages) {
		rc = know(f, pages, DAXFS_MAX_PGOFF, 0);
		if (rc)
			return rc;
	}
	do
		rc = ftruncate(o->fd, BYTES(pages));
	while (rc && errno == EINTR);
	if (rc)
		return -errno;
	o->pages = pages;
	own_note(o, "size", pages << DAXFS_PAGE_SHIFT, 0);
	return 0;
}

/* Zeros in a piece of one page, inside the file. A hole stays one. */
static int zero_piece(const struct own_range *o, off_t pos, off_t end)
{
	off_t data;

	if (!o->syncs || !is_dax(o->fd))
		return falloc(o->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, pos, end - pos);
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
		rc = falloc(f->own->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)pos, (off_t)(end - pos));
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
