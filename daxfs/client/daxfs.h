/* SPDX-License-Identifier: MIT
 *
 * libdaxfs: mappings of files of a daxfs mount that know what was stored through them (docs/client.md).
 *
 * A mapping made here is *observed* where the kernel maps the file directly (DAX flag, pool directory): the
 * page table says which pages were stored to, so daxfs_msync writes back those alone, in this process and
 * without a request to the daemon; fsync(2) by anybody finds them, too. Any other file, also of other file
 * systems, is mapped plainly, and all functions work on it by msync(2).
 *
 * Functions that return int: 0, or -1 with errno set. Addresses and lengths are in bytes.
 *
 * Threads: every function may be called by any thread at any time, but not on what another unmaps.
 *
 * fork: the child's copies of observed mappings are observed, too (pthread_atfork). After vfork(2), _Fork(2)
 * or a plain clone(2) a child may load; its stores are not observed until it maps anew.
 *
 * exec: the mappings go; daxfs_msync first. exit(3) writes back what is left.
 *
 * Signal handlers may call daxfs_flush, daxfs_drain, daxfs_persist, daxfs_msync, daxfs_dirty and
 * daxfs_info_at. Signals but those of faults wait while daxfs_msync writes back.
 *
 * SIGBUS: a page that a truncation takes away while it is written back gives SIGBUS, as a load from it would.
 *
 * mprotect(2) that takes PROT_READ away: only under `daxfs run` are such pages written back, else SIGSEGV.
 *
 * Descriptors: one for each observed mapping, three for the process and, once a range of 256 KiB was written
 * back, one for each CPU and two for each CPU and older thread (512 at most) are kept open (close-on-exec).
 */
#ifndef DAXFS_H
#define DAXFS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

enum {
	DAXFS_MAP_WRITE = 1,	/* PROT_WRITE; without it the mapping is for loads alone, and plain */
	DAXFS_MAP_PRIVATE = 2,	/* MAP_PRIVATE: stores stay in this process; plain */
	DAXFS_MAP_PTE = 4,	/* pages of 4 KiB from the start: finer tracking, and more faults */
	DAXFS_MAP_REQUIRE = 8,	/* fail (EOPNOTSUPP) where the mapping can't be observed */
	DAXFS_MAP_USER = 16,	/* fault=user: the daemon answers faults, and knows itself what was stored */
};

/* What a mapping is. */
struct daxfs_info {
	int observed;		/* 1: observed. 0: plain */
	int error;		/* plain: the errno behind `why`, or 0 */
	const char *why;	/* plain: the reason, a constant text. observed: NULL */
	const char *flush;	/* how lines are written back: "clwb", "clflushopt", "clflush", "none", "msync" */
	uint64_t offset;	/* in the file, of the address that was asked about */
};

/* Bytes [start, start + length) of the address space. */
struct daxfs_piece {
	void *start;
	size_t length;
};

/*
 * Map `length` bytes of the file `path` at `offset` (a multiple of 4096), shared; 2 MiB pages are
 * possible where the file has them. 0 as length: up to the end of file. `info` (or NULL) says what became
 * of it. Unmap with daxfs_unmap. NULL: errno of open(2), fstat(2) or mmap(2); EINVAL: offset, unknown
 * flags, or nothing to map; EOPNOTSUPP: DAXFS_MAP_REQUIRE.
 */
void *daxfs_map(const char *path, unsigned flags, uint64_t offset, size_t length, struct daxfs_info *info);

/*
 * The same of an open descriptor, which may be closed afterwards. To call it is a promise: whatever is
 * mapped shared and writable of this open file is mapped by this function, so that fsync(2) need not take
 * each page for dirty.
 */
void *daxfs_map_fd(int fd, unsigned flags, uint64_t offset, size_t length, struct daxfs_info *info);

/* Make what was stored durable, end observing, unmap. A part of a mapping (whole pages) will do. */
int daxfs_unmap(void *addr, size_t length);

/*
 * msync(2): what was stored to [addr, addr + length) since it was flushed last is durable when this
 * returns. `flags` as POSIX has them: MS_SYNC; MS_ASYNC alone does nothing (as Linux); MS_INVALIDATE:
 * nothing is stale, EBUSY where the memory is locked. EINVAL: flags, addr no multiple of the page size;
 * ENOMEM: not mapped.
 */
int daxfs_msync(void *addr, size_t length, int flags);

/*
 * For who knows what it stored: no scan, the marks stay (a later fsync flushes these pages again).
 * flush queues the cache lines of the bytes, drain orders everything queued before it as durable before any
 * later store, persist is both. On plain mappings flush is msync(2) of the pages, and drain has nothing
 * to do.
 */
int daxfs_flush(const void *addr, size_t length);
void daxfs_drain(void);
int daxfs_persist(const void *addr, size_t length);

/*
 * What of [addr, addr + length), whole pages, was stored to and not made durable by daxfs_msync or fsync(2)
 * since; nothing is changed. Up to `room` pieces in `out`, ascending; returns how many, or -1. As many as
 * `room`: there may be more behind the last. What was mapped before the first flush counts as stored
 * to, and a huge page as a whole. EOPNOTSUPP: a plain mapping, of which nobody knows.
 */
ssize_t daxfs_dirty(const void *addr, size_t length, struct daxfs_piece *out, size_t room);

/* What the mapping at `addr` is. ENOENT: none of daxfs_map, nor (under `daxfs run`) an observed one. */
int daxfs_info_at(const void *addr, struct daxfs_info *info);

/*
 * How daxfs_msync finds what was stored: the kernel records this process's page faults, and only pages that
 * one has made writable are looked at; or all of the range is scanned. Ranges below 256 KiB are always
 * scanned, and do not count.
 */
struct daxfs_records {
	uint64_t by_records, by_scan;	/* write-backs of each kind, since the process began */
	const char *why;		/* why all is scanned now; NULL: records are used */
};
void daxfs_records(struct daxfs_records *out);

/*
 * What this process has written back since it began, by whichever function: calls for a run of lines, cache
 * lines (of 64 bytes), and drains. What is written back by msync(2), of plain mappings, is not in it.
 */
struct daxfs_flushes {
	uint64_t calls, lines, drains;
};
void daxfs_flushes(struct daxfs_flushes *out);

/*
 * Where the time of daxfs_msync, and under `daxfs run` of msync(2), went since the process began (a child of
 * fork(2) begins with its parent's sums), in ns:
 * write-backs of observed mappings by this process itself. `wait`: for another thread's write-back of the
 * file, and for an fsync(2) of it that the daemon is at; `scan`: finding, and protecting, what was stored;
 * `flush`: queueing its lines; `drain`: until they are durable. Not in it: the call around, and what is
 * msync(2) of plain mappings.
 */
struct daxfs_msyncs {
	uint64_t count, wait, scan, flush, drain;
};
void daxfs_msyncs(struct daxfs_msyncs *out);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
