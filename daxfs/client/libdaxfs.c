/* SPDX-License-Identifier: MIT
 *
 * The functions of daxfs.h, over client.c. Limits: arguments are checked and translated here; nothing
 * else is.
 */
#define _GNU_SOURCE
#include "daxfs/client/daxfs.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daxfs/client/lib.h"

#define HUGE_PAGE ((uintptr_t)2 << 20)
#define KNOWN_FLAGS (DAXFS_MAP_WRITE | DAXFS_MAP_PRIVATE | DAXFS_MAP_PTE | DAXFS_MAP_REQUIRE | DAXFS_MAP_USER)
#define DOWN(x) ((uintptr_t)(x) & ~(CLIENT_PAGE - 1))
#define UP(x) DOWN((uintptr_t)(x) + CLIENT_PAGE - 1)

static int fail(int error)
{
	errno = error;
	return -1;
}

static void *no_map(int error)
{
	errno = error;
	return NULL;
}

static void describe(const struct piece *p, uintptr_t addr, struct daxfs_info *info)
{
	info->observed = p->id != 0;
	info->error = p->id ? 0 : p->error;
	info->why = p->id ? NULL : p->why;
	info->flush = flushing_name(p->flush);
	info->offset = p->offset + (addr - p->start);
}

/*
 * Map at an address of the file's colour, so that huge pages fit: the address space is reserved, and what
 * is not needed of it given back.
 */
static uintptr_t map_coloured(size_t length, int prot, int flags, int fd, uint64_t offset)
{
	size_t room = length + HUGE_PAGE;
	uintptr_t at, base;

	if (length < HUGE_PAGE)
		return syscall(SYS_mmap, NULL, length, prot, flags, fd, offset);
	base = syscall(SYS_mmap, NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == (uintptr_t)MAP_FAILED)
		return base;
	at = base + ((offset - base) & (HUGE_PAGE - 1));
	if ((uintptr_t)syscall(SYS_mmap, at, length, prot, flags | MAP_FIXED, fd, offset) != at) {
		int error = errno;

		syscall(SYS_munmap, base, room);
		errno = error;
		return (uintptr_t)MAP_FAILED;
	}
	if (at > base)
		syscall(SYS_munmap, base, at - base);
	if (base + room > at + UP(length))
		syscall(SYS_munmap, at + UP(length), base + room - at - UP(length));
	return at;
}

/* Observe the new mapping, or write down that it is plain, and why. 0 or -errno. */
static int enter(struct piece *p, int fd, unsigned flags)
{
	sigset_t old;
	int r;

	client_lock(&old);
	if ((r = pieces_reserve(4)) == 0) {
		if (flags & DAXFS_MAP_PRIVATE)
			p->why = "a private mapping", p->error = EINVAL;
		else if (!(flags & DAXFS_MAP_WRITE))
			p->why = "a mapping for loads alone", p->error = EACCES;
		else
			p->error = -client_attach(p->start, p->end, fd, p->offset, PROT_READ | PROT_WRITE,
						  flags & DAXFS_MAP_PTE ? BEGIN_PROTECTED : BEGIN_AS_IS,
						  flags & DAXFS_MAP_USER ? DAXFS_FAULT_USER : client_mode(),
						  &p->why);
		if (p->error == ENOMEM)
			r = -ENOMEM;
		else if (p->error && flags & DAXFS_MAP_REQUIRE)
			r = -EOPNOTSUPP;
		else if (p->error)
			pieces_put(p);
	}
	client_unlock(&old);
	return r;
}

void *daxfs_map_fd(int fd, unsigned flags, uint64_t offset, size_t length, struct daxfs_info *info)
{
	int prot = PROT_READ | (flags & DAXFS_MAP_WRITE ? PROT_WRITE : 0), r;
	struct piece p = {.holder = -1, .prot = prot, .flush = DAXFS_FLUSH_MSYNC};
	struct stat st;

	if (flags & ~KNOWN_FLAGS || offset % CLIENT_PAGE || offset > INT64_MAX)
		return no_map(EINVAL);
	if (fstat(fd, &st))
		return NULL;
	if (!length) {
		if ((uint64_t)st.st_size <= offset)
			return no_map(EINVAL);
		length = st.st_size - offset;
	}
	if (length > (size_t)INT64_MAX - offset - 2 * HUGE_PAGE)
		return no_map(EINVAL);
	p.start = map_coloured(length, prot, flags & DAXFS_MAP_PRIVATE ? MAP_PRIVATE : MAP_SHARED, fd, offset);
	if (p.start == (uintptr_t)MAP_FAILED)
		return NULL;
	p.end = p.start + UP(length);
	p.offset = offset;
	r = enter(&p, fd, flags);
	if (r) {
		syscall(SYS_munmap, p.start, p.end - p.start);
		return no_map(-r);
	}
	if (info)
		daxfs_info_at((void *)p.start, info);
	return (void *)p.start;
}

void *daxfs_map(const char *path, unsigned flags, uint64_t offset, size_t length, struct daxfs_info *info)
{
	int write = (flags & (DAXFS_MAP_WRITE | DAXFS_MAP_PRIVATE)) == DAXFS_MAP_WRITE;
	/* O_NONBLOCK means nothing on a file; but no handle is parked with it (docs/fault.md), so this one is
	 * new, and the promise that all its mappings are observed holds. */
	int fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK), error;
	void *at;

	if (fd < 0)
		return NULL;
	at = daxfs_map_fd(fd, flags, offset, length, info);
	error = errno;
	syscall(SYS_close, fd);
	errno = error;
	return at;
}

int daxfs_unmap(void *addr, size_t length)
{
	uintptr_t start = (uintptr_t)addr, end = start + UP(length), at;
	struct piece p;
	int r = 0;

	if (start % CLIENT_PAGE || !length || end < start)
		return fail(EINVAL);
	/* Of plain ones only who made them here asks for that; munmap(2) itself writes nothing back. */
	for (at = start; at < end && pieces_next(at, end, &p); at = p.end)
		if (!p.id && p.prot & PROT_WRITE) {
			uintptr_t from = p.start > start ? p.start : start, to = p.end < end ? p.end : end;
			int one = kernel_msync(from, to, MS_SYNC);

			r = r ? r : one;
		}
	if (client_unmap(start, length))
		return -1;
	return r ? fail(-r) : 0;
}

/* What of [start, end) is not observed goes to the kernel's msync. 0 or -errno of the first that failed. */
static int sync_gaps(uintptr_t start, uintptr_t end, int flags)
{
	struct piece p;
	int r, first = 0;

	while (start < end) {
		uintptr_t to = end, from = start;

		start = end;
		if (pieces_next(from, end, &p)) {
			start = p.end;
			to = p.id ? p.start : p.end < end ? p.end : end;
		}
		if (to > from) {
			r = kernel_msync(from, to, flags);
			first = first ? first : r;
		}
	}
	return first;
}

int daxfs_msync(void *addr, size_t length, int flags)
{
	uintptr_t start = (uintptr_t)addr, end = start + UP(length);
	int r = 0, gaps;

	if (flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) || (flags & MS_ASYNC && flags & MS_SYNC)
	    || start % CLIENT_PAGE)
		return fail(EINVAL);
	if (end < start || (length && end == start))
		return fail(ENOMEM);
	/* Locked memory, which the kernel knows of, is EBUSY for MS_INVALIDATE. */
	if (flags & MS_INVALIDATE && (r = kernel_msync(start, end, flags & ~MS_SYNC)) == -EBUSY)
		return fail(EBUSY);
	gaps = sync_gaps(start, end, flags);
	if (flags & MS_SYNC) {
		int own = client_sync(start, end);

		r = r ? r : own;
	}
	r = r ? r : gaps;
	return r ? fail(-r) : 0;
}

int daxfs_flush(const void *addr, size_t length)
{
	uintptr_t at = (uintptr_t)addr, end = at + length;
	struct piece p;
	int r = 0;

	if (end < at)
		return fail(ENOMEM);
	while (at < end && !r) {
		uintptr_t to = end;

		if (!pieces_next(at, end, &p) || p.start > at) {
			p.flush = DAXFS_FLUSH_MSYNC;	/* memory that we know nothing of, up to the next piece */
			p.end = p.start > at && p.start < end ? p.start : end;
		}
		if (p.end < end)
			to = p.end;
		if (p.flush == DAXFS_FLUSH_MSYNC)
			r = kernel_msync(DOWN(at), UP(to), MS_SYNC);
		else
			flushing_queue(p.flush, at, to);
		at = to;
	}
	return r ? fail(-r) : 0;
}

void daxfs_drain(void)
{
	/* Orders the lines that the caller queued (daxfs_flush) before whatever it stores next. */
	flushing_drain();
}

int daxfs_persist(const void *addr, size_t length)
{
	uintptr_t at = (uintptr_t)addr, end = at + length;
	struct piece p;
	int r;

	if (pieces_next(at, at + 1, &p) && end >= at && end <= p.end && p.flush != DAXFS_FLUSH_MSYNC) {
		flushing_persist(p.flush, at, end);	/* the common case, without a locked add in between */
		return 0;
	}
	r = daxfs_flush(addr, length);
	/* Orders the stores to these bytes before whatever the caller stores next. */
	flushing_drain();
	return r;
}

void daxfs_records(struct daxfs_records *out)
{
	sigset_t old;

	client_lock(&old);	/* signals wait */
	out->why = candidates_counts(&out->by_records, &out->by_scan);
	client_unlock(&old);
}

void daxfs_flushes(struct daxfs_flushes *out)
{
	flushing_counts(&out->calls, &out->lines, &out->drains);
}

void daxfs_msyncs(struct daxfs_msyncs *out)
{
	client_sync_times(&out->count, &out->wait, &out->scan, &out->flush, &out->drain);
}

int daxfs_info_at(const void *addr, struct daxfs_info *info)
{
	uintptr_t at = (uintptr_t)addr;
	struct piece p;

	if (!pieces_next(at, at + 1, &p))
		return fail(ENOENT);
	describe(&p, at, info);
	return 0;
}
