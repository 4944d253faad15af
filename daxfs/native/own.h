/* SPDX-License-Identifier: MIT
 *
 * Storage of an inode's own range (struct own_range, filemap.h): a file of the pool directory, mapped as a
 * whole at one place of the own window. What the map's extents say follows what is done here.
 *
 * The caller holds filemap.lock exclusively. No function stores data; each returns 0 or -errno and may be
 * called by any thread without the GIL. System calls that a signal ends are made again.
 *
 * -ETXTBSY on fsdax: somebody has a page of the file pinned, and as long as that is so the kernel frees, cuts
 * and punches none (on XFS it gives no storage either). 10 ms are waited for that; then nothing of the file
 * has changed, but that own_reserve may have got a part. SIGURG is taken, for the calling thread alone.
 */
#ifndef DAXFS_OWN_H
#define DAXFS_OWN_H

#include "daxfs/native/filemap.h"

/* Who is told what was done to a range's file, right after it, under filemap.lock (record.h): "size" with the
 * bytes that the file has now; "zero" with the first of the bytes that read as zeros now, and how many;
 * "place" with the region's byte that byte 0 has from now on, and how many have one; "sync": all before it is
 * durable. Storage alone, which changes no byte, is not told. */
struct own_watch {
	void (*note)(struct own_watch *w, const char *what, uint64_t a, uint64_t b);
};

static inline void own_note(const struct own_range *o, const char *what, uint64_t a, uint64_t b)
{
	if (__builtin_expect(o->watch != NULL, 0))
		o->watch->note(o->watch, what, a, b);
}

/* Storage for the pages [first, last): from now on they are MAPPED, and the range's file reaches behind them.
 * With `syncs` that is durable on return. -ENOSPC, -E2BIG (more pages than the range has room for), -EIO. */
int own_cover(struct filemap *f, uint64_t first, uint64_t last);
/* The same without making the file longer: pages behind its end get storage, and no extent. */
int own_reserve(struct filemap *f, uint64_t first, uint64_t last);
/* The extents of [first, last) are what the range's file has now, at most `runs` runs of data (then the rest
 * is unknown, as holes). */
int own_learn(struct filemap *f, uint64_t first, uint64_t last, unsigned runs);
/* How much of [first, last), which lies within the file, has memory: 2 all of it, and then its extents say
 * so, 1 some, 0 none. tmpfs alone, where memory is storage. Costs what is looked at, as lseek does not.
 * -ENOSYS before Linux 6.5. */
int own_look(struct filemap *f, uint64_t first, uint64_t last);
/* How many of the pages [first, last) of a file on tmpfs have memory, also those that were allocated and
 * never touched, which lseek takes for a hole. -errno, as above. The lock is not needed. */
int64_t own_cached(int fd, uint64_t first, uint64_t last);
/* The range's file has so many pages. What was behind is gone, what is new reads as zeros. Not synced. */
int own_resize(struct filemap *f, uint64_t pages);
/* Before what needs a cut of the file later: -ETXTBSY where that would have to wait now; nothing elsewhere
 * than on fsdax. It is a cut to the present size, as the kernel has no question that changes nothing: what
 * storage there was behind the end of the file is gone after it. `syncs` as of an own_range. */
int own_settle(int fd, int syncs);
/* own_resize for a file that is no FileMap's: cut it to `size` bytes. */
int own_shorten(int fd, int syncs, uint64_t size);
/* The bytes [pos, end) read as zeros: whole pages lose their storage. Not synced. */
int own_punch(struct filemap *f, uint64_t pos, uint64_t end);
/* Bytes of the range's file, also where no extent is. The shared lock is enough. 0 or -errno. */
int own_read(const struct filemap *f, uint64_t pos, uint64_t size, char *target);
/* lseek with SEEK_DATA (data) or SEEK_HOLE, within [0, f->size): the position, or f->size. The shared lock is
 * enough. -errno. */
int64_t own_seek(const struct filemap *f, uint64_t pos, int data);

#endif
