/* SPDX-License-Identifier: MIT
 *
 * READ, WRITE, FSYNC, LSEEK and FALLOCATE without metadata transactions (serve_file.h). The same rules as
 * data/file_io.py and meta/attr.py have for the metadata thread, in the same order of stores; tests compare.
 *
 * Each function takes the lock of one map and gives it back. Size and times of an inode are stored in
 * place, as aligned 8-byte atoms, under that lock: a transaction that edits the inode holds it exclusively.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>	/* SEEK_SET, SEEK_END */
#include <string.h>
#include <sys/stat.h>

#include "daxfs/native/own.h"
#include "daxfs/native/serve_file.h"
#include "daxfs/native/tracker.h"

#define PAGE_SIZE (UINT64_C(1) << DAXFS_PAGE_SHIFT)
#define PAGES(bytes) (((bytes) + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT)
#define MAX_FILE_SIZE (UINT64_C(1) << 44)	/* layout.MAX_FILE_SIZE */
#define PIECES_FROM 16384		/* shorter reads cost less as a copy than a lock kept while the reply is sent */
#define PMD_PAGES UINT64_C(512)
#define DAY_NS (INT64_C(86400) * 1000000000)
#define FALLOCATE_KEEP_SIZE 1u
#define SEEK_TO_DATA 3u
#define SEEK_TO_HOLE 4u

static uint32_t state_of(const struct filemap *f)
{
	return __atomic_load_n(&f->state, __ATOMIC_RELAXED);
}

static int may_write(struct server *s)
{
	return __atomic_load_n(&s->limits.writes, __ATOMIC_RELAXED);
}

/* The lock is held: enter the region, so that addresses are good until leave(). -EIO: it is dead. */
static int enter_locked(struct server *s, struct filemap *f)
{
	int rc = range_enter(s->io->table);
	if (rc)
		file_lock_give(&f->lock);
	return rc;
}

static int enter(struct server *s, struct filemap *f, int exclusive)
{
	file_lock_take(&f->lock, exclusive);
	return enter_locked(s, f);
}

/* Nothing was stored, or a drain followed. err, or -EIO where a page of the region is gone (lost.h). */
static int leave(struct server *s, struct filemap *f, int err)
{
	err = range_leave(s->io->table, err);
	file_lock_give(&f->lock);
	return err;
}

/* Pages of the file's own range went away under a load or store (lost.h): only the metadata thread maps it
 * anew, and until then nothing may be read from there or stored. Lock held. */
static int is_torn(const struct filemap *f)
{
	return f->own && __atomic_load_n(&f->own->torn, __ATOMIC_SEQ_CST);
}

/* Are pages of it poisoned? Which ones only the metadata thread knows. Lock held. */
static int is_poisoned(const struct filemap *f)
{
	return __builtin_expect(state_of(f) & FILEMAP_POISONED, 0) != 0;
}

/* Give the lock back after stores that no drain followed: another thread's fsync must find them ordered.
 * On x86 the locked instruction of the unlock does that, for nt stores and write-backs as sfence does. */
static int leave_after_stores(struct server *s, struct filemap *f, int err)
{
#if !defined(__x86_64__) && !defined(__i386__)
	/* Orders what this thread stored before what the next holder of the lock drains. */
	s->io->ops->drain(s->io->ops);
#endif
	return leave(s, f, err);
}

/* Is what the map says all there is to know? Otherwise only Python can answer. */
static int is_known(const struct serve_handle *h)
{
	return h->f->inode || h->flags & SERVE_RAW;
}

/* -- times ------------------------------------------------------------------------------ */

/* Store time words in place. Their line is queued at once, or with lazytime at the next fsync. */
static void put_times(struct server *s, struct filemap *f, size_t at, const int64_t *times, size_t n,
		      int queue)
{
	struct daxfs_flush *ops = s->io->ops;

	ops->store(ops, f->inode + at, times, n * sizeof(*times));
	if (queue || !__atomic_load_n(&s->limits.lazytime, __ATOMIC_RELAXED))
		ops->flush(ops, f->inode + at, n * sizeof(*times));
	else	/* After the store: who clears the mark flushes after that. */
		__atomic_fetch_or(&f->state, FILEMAP_STALE_TIMES, __ATOMIC_SEQ_CST);
}

/* Modification and change time. `queue`: in spite of lazytime. */
static void touch_write(struct server *s, struct filemap *f, int queue)
{
	int64_t now = s->now(s), times[2] = {now, now};

	if (f->inode)
		put_times(s, f, INODE_MTIME_AT, times, 2, queue);
}

static int64_t time_of(const struct filemap *f, size_t at)
{
	return __atomic_load_n((const int64_t *)(f->inode + at), __ATOMIC_RELAXED);
}

/* Would a read have to change the access time (meta/attr.py atime_due)? Lock held. */
static int atime_due(struct server *s, const struct serve_handle *h, int64_t now)
{
	int policy = __atomic_load_n(&s->limits.atime, __ATOMIC_RELAXED);
	int64_t atime, age;

	if (!policy || !h->f->inode || h->flags & SERVE_NOATIME)
		return 0;
	/* Only a record changes flags, under the exclusive lock: an ordinary load. */
	if (*(const uint32_t *)(h->f->inode + INODE_FLAGS_AT) & INODE_FLAG_NOATIME)
		return 0;
	if (policy == 2)
		return 1;
	atime = time_of(h->f, INODE_ATIME_AT);
	if (atime <= time_of(h->f, INODE_MTIME_AT) || atime <= time_of(h->f, INODE_CTIME_AT))
		return 1;
	return !__builtin_sub_overflow(now, atime, &age) ? age >= DAY_NS : atime < 0;
}

/* -- READ ------------------------------------------------------------------------------- */

static uint64_t bytes_at(const struct filemap *f, uint64_t pos, uint64_t size)
{
	if (pos >= f->size)
		return 0;
	return size < f->size - pos ? size : f->size - pos;
}

/* The data, in pieces of the region or in r->buf. Lock held shared, region entered. 0 or -errno. */
static int read_data(struct server *s, struct filemap *f, uint64_t pos, uint64_t size, struct serve_reply *r)
{
	int n;

	r->len = size;
	if (r->by_pieces && size >= PIECES_FROM) {
		n = dax_pieces(s->io, f, pos, size, r->piece, SERVE_PIECES);
		if (n != -E2BIG) {
			r->npieces = n > 0 ? n : 0;
			return n < 0 ? n : 0;
		}
	}
	return dax_copy_out(s->io, f, pos, size, r->buf);
}

enum serve_verdict serve_read(struct server *s, struct serve_handle *h, const char *arg,
			      struct serve_reply *r)
{
	struct filemap *f = h->f;
	struct wire_read in;
	uint64_t size;
	int64_t now = s->now(s);
	int err, due;

	memcpy(&in, arg, sizeof(in));
	if (!is_known(h) || in.size > r->cap)
		return SERVE_CALL;
	if (enter(s, f, 0))
		return serve_error(r, -EIO);
	due = atime_due(s, h, now);
	if (is_torn(f) || is_poisoned(f) || (due && !may_write(s))) {
		err = leave(s, f, 0);
		return err ? serve_error(r, err) : SERVE_CALL;
	}
	size = bytes_at(f, in.offset, in.size);
	/* Page fills come without an owner of locks; so do all reads of a handle that the page cache serves. */
	if (s->fault && !(h->flags & SERVE_DIRECT && in.read_flags & WIRE_READ_LOCKOWNER))
		s->fault(s->fault_ctx, f, in.offset, in.size, 0);
	err = read_data(s, f, in.offset, size, r);
	if (due && !err)
		put_times(s, f, INODE_ATIME_AT, &now, 1, 0);
	if (r->npieces && !err) {
		r->handle = h;		/* lock and region: until serve_done */
		return SERVE_DONE;
	}
	err = leave_after_stores(s, f, err);
	return err ? serve_error(r, err) : SERVE_DONE;
}

/* -- FSYNC ------------------------------------------------------------------------------ */

/* What is dirty written back, or else one drain. Lock held exclusively. run: of an fsync, or NULL. 0 or
 * -errno. */
static int write_back(struct server *s, struct filemap *f, struct fsync_run *run)
{
	int64_t bytes;

	if (tracker_any(f)) {
		/* Its drain orders times that were queued before as well. */
		bytes = dax_writeback(s->io, f, 0, UINT64_MAX, run);
		return bytes < 0 ? (int)bytes : 0;
	}
	/* Orders stores past the cache (drain=fsync) and queued times, this thread's and, by the lock that is
	 * held, those of threads that had it before, before the reply to fsync. */
	s->io->ops->drain(s->io->ops);
	fsync_lap(run, FSYNC_DRAIN);
	return 0;
}

/* Queue the times that lazytime held back. Lock held exclusively. */
static void queue_stale_times(struct server *s, struct filemap *f, struct fsync_run *run)
{
	struct daxfs_flush *ops = s->io->ops;

	if (!(state_of(f) & FILEMAP_STALE_TIMES))
		return;
	fsync_lap(run, FSYNC_OTHER);
	__atomic_fetch_and(&f->state, ~FILEMAP_STALE_TIMES, __ATOMIC_SEQ_CST);
	ops->flush(ops, f->inode, INODE_HOT_BYTES);
	fsync_lap(run, FSYNC_META);
}

/* May programs store into the file past us? Then only the metadata thread knows what an fsync has to do: all
 * pages, those that a look at the programs' page tables finds, or the range's own fsync where the source's
 * kernel tracks such stores. */
static int stored_elsewhere(const struct filemap *f)
{
	return is_torn(f) || state_of(f) & (FILEMAP_COARSE | FILEMAP_OBSERVED | FILEMAP_STORED)
		|| (f->own && f->own->syncs);
}

enum serve_verdict serve_fsync(struct server *s, struct serve_handle *h, struct serve_reply *r)
{
	struct fsync_run *run = r->fsync.began ? &r->fsync : NULL;	/* of a directory: none */
	struct filemap *f = h->f;
	int err = 0, settled;

	if (!may_write(s) || !f || !f->inode)
		return SERVE_CALL;
	fsync_take_lock(run, &f->lock, FSYNC_OTHER);
	if (enter_locked(s, f))
		return serve_error(r, -EIO);
	if (stored_elsewhere(f)) {
		err = leave(s, f, 0);
		return err ? serve_error(r, err) : SERVE_CALL;
	}
	/* Otherwise replay would bring older times and size back: the journal must be settled, which is not
	 * ours to do. But then what is dirty has been written back, and nobody waits for that. */
	settled = !(state_of(f) & FILEMAP_UNSETTLED);
	queue_stale_times(s, f, run);
	if (settled || tracker_any(f)) {
		fsync_lap(run, FSYNC_OTHER);
		err = write_back(s, f, run);
	}
	err = leave(s, f, err);
	if (err)
		return serve_error(r, err);
	return settled ? SERVE_DONE : SERVE_CALL;
}

/* -- WRITE ------------------------------------------------------------------------------ */

/* The range ends where the file does: there a mapping's SIGBUS begins. If that fails it stays longer, which
 * the next change of the size mends, or fsck.daxfs. Lock held exclusively. */
static void own_give_back(struct filemap *f)
{
	uint64_t pages = PAGES(f->size), low = pages & ~(PMD_PAGES - 1);
	struct stat st;

	/* As meta/own.py _keeping_marks, should somebody have begun to observe just now. */
	if (state_of(f) & FILEMAP_OBSERVED && low < pages
			&& (own_learn(f, low, pages, -1u) || tracker_mark_pages(f, low, pages - low)))
		__atomic_fetch_or(&f->state, FILEMAP_COARSE, __ATOMIC_SEQ_CST);

	/* Asked for, since a file system may have made it longer and failed then; and not cut for nothing, which
	 * would change its times. */
	if (!fstat(f->own->fd, &st) && (uint64_t)st.st_size > pages << DAXFS_PAGE_SHIFT && own_resize(f, pages))
		return;
}

/* Storage for a write to an own range where none is known to be: 0, or -errno with the range as long as it
 * was (what it took inside stays, and reads as zeros). Lock held exclusively. */
static int own_take(struct filemap *f, uint64_t pos, uint64_t size)
{
	int err = own_cover(f, pos >> DAXFS_PAGE_SHIFT, PAGES(pos + size));

	if (err && err != -E2BIG)	/* then nothing was tried */
		own_give_back(f);
	return err;
}

/* Has every page of the write storage that the map knows of? Of an own range it is taken here. What can't be
 * had, the metadata thread tries again: it finds more addresses, and knows how to write less than all. */
static int has_storage(struct filemap *f, uint64_t pos, uint64_t size)
{
	if (dax_covered(f, pos, size))
		return 1;
	/* Where clients observe, a cut after it failed would have to be told to them: meta/own.py does that. */
	return f->own && !(state_of(f) & FILEMAP_OBSERVED) && !own_take(f, pos, size);
}

/* Has this write to be durable before its reply? By its descriptor, or by itself (RWF_DSYNC): the kernel
 * sends an FSYNC after writes that go through its page cache, but after direct ones it only says so. */
static int is_dsync(const struct serve_handle *h, const struct wire_write *in)
{
	if (h->flags & SERVE_DSYNC)
		return 1;
	return h->flags & SERVE_DIRECT && in->flags & O_DSYNC && !(in->write_flags & WIRE_WRITE_CACHE);
}

/* May this write be done here? Lock held exclusively. *append: it makes the file larger. */
static int write_is_ours(const struct serve_handle *h, uint64_t pos, uint64_t size, int dsync, int *append)
{
	struct filemap *f = h->f;
	uint32_t state = state_of(f);

	*append = pos + size > f->size;
	if (!(state & FILEMAP_PLAIN) || state & FILEMAP_POISONED || pos > f->size || is_torn(f))
		return 0;
	/* Its tracker may be one that a failed switch has left, which knows nothing. */
	if (state & FILEMAP_STORED && dsync)
		return 0;
	/* A record that replay would apply holds another size; and what O_DSYNC asks for is then settle's. */
	if (state & FILEMAP_UNSETTLED && (*append || dsync))
		return 0;
	return has_storage(f, pos, size);
}

/* Over blocks and bytes that are there. Lock held exclusively. */
static int overwrite(struct server *s, struct serve_handle *h, uint64_t pos, uint64_t size, const char *data,
		     int dsync)
{
	struct daxio *io = s->io;
	int err = dax_copy_in(io, h->f, pos, size, data, io->nt);

	if (err)
		return err;
	if (dsync) {
		touch_write(s, h->f, 1);
		queue_stale_times(s, h->f, NULL);
		return write_back(s, h->f, NULL);
	}
	if (io->nt && io->drain_write)
		/* Orders the data of this write before the reply to it. */
		io->ops->drain(io->ops);
	touch_write(s, h->f, 0);
	return 0;
}

/* Into blocks behind the end of file. Lock held exclusively. */
static int append(struct server *s, struct serve_handle *h, uint64_t pos, uint64_t size, const char *data,
		  int dsync)
{
	struct filemap *f = h->f;
	struct daxfs_flush *ops = s->io->ops;
	uint64_t over = f->size - pos, end = pos + size;
	int64_t now = s->now(s), times[2] = {now, now};
	int err = 0;

	dax_populate(s->io, f, pos, size);
	if (over)
		err = dax_copy_in(s->io, f, pos, over, data, s->io->nt);
	if (!err)
		err = dax_copy_in(s->io, f, f->size, size - over, data + over, 1);
	if (!err && !f->own && PAGES(end) > PAGES(f->size))
		/* Preallocated pages hold anything: the rest of the last page is seen by who maps it. New pages of
		 * an own range are zeros; and what a program has stored behind the old end, in the last page, stays
		 * behind the new one or was just written over: a write begins at the size or before it, so nothing
		 * else comes into sight. The next append does the same, and growth without data zeroes. */
		err = dax_zero(s->io, f, end, -end & (PAGE_SIZE - 1));
	if (err)
		return err;
	/* Orders the data behind the old end, and zeros behind the new one, before the size that makes them
	 * reachable. */
	ops->drain(ops);
	ops->store(ops, f->inode + INODE_MTIME_AT, times, sizeof(times));
	ops->store(ops, f->inode + INODE_SIZE_AT, &end, sizeof(end));
	/* One line, and with it goes what lazytime held back. */
	__atomic_fetch_and(&f->state, ~FILEMAP_STALE_TIMES, __ATOMIC_SEQ_CST);
	ops->flush(ops, f->inode, INODE_HOT_BYTES);
	__atomic_store_n(&f->size, end, __ATOMIC_SEQ_CST);
	if (dsync)
		return write_back(s, f, NULL);
	/* Orders the size before the reply: a write that grows the file is durable when it returns. */
	ops->drain(ops);
	return 0;
}

enum serve_verdict serve_write(struct server *s, struct serve_handle *h, const char *arg, const char *data,
			       struct serve_reply *r)
{
	struct wire_write_out out = {0, 0};
	struct filemap *f = h->f;
	struct wire_write in;
	int err, grows, dsync;

	memcpy(&in, arg, sizeof(in));
	dsync = is_dsync(h, &in);
	if (!(h->flags & SERVE_WRITE))
		return serve_error(r, -EBADF);
	if (!may_write(s) || !is_known(h) || !in.size || in.offset > MAX_FILE_SIZE - in.size)
		return SERVE_CALL;
	if (enter(s, f, 1))
		return serve_error(r, -EIO);
	if (!write_is_ours(h, in.offset, in.size, dsync, &grows)) {
		err = leave(s, f, 0);
		return err ? serve_error(r, err) : SERVE_CALL;
	}
	if (s->fault && (in.write_flags & WIRE_WRITE_CACHE || !(h->flags & SERVE_DIRECT)))
		s->fault(s->fault_ctx, f, in.offset, in.size, 1);
	err = grows ? append(s, h, in.offset, in.size, data, dsync)
		    : overwrite(s, h, in.offset, in.size, data, dsync);
	if (err && f->own)
		own_give_back(f);
	err = leave_after_stores(s, f, err);
	if (err)
		return serve_error(r, err);
	out.size = in.size;
	return serve_answer(r, &out, sizeof(out));
}

/* -- LSEEK ------------------------------------------------------------------------------ */

/* The first byte at or after pos that is in a written extent (data), or is not; f->size: none. Lock held. */
static uint64_t seek(const struct filemap *f, uint64_t pos, int data)
{
	struct iomap m;
	uint64_t at;

	for (; pos < f->size; pos = at) {
		filemap_lookup(f, pos >> DAXFS_PAGE_SHIFT, &m);
		if ((m.type == IOMAP_MAPPED) == data)
			return pos;
		if (m.len >= (f->size >> DAXFS_PAGE_SHIFT) + 1)
			break;
		at = (m.pgoff + m.len) << DAXFS_PAGE_SHIFT;
	}
	return f->size;
}

/* The answer to lseek(2), or -errno. The size is a hole's beginning, never data. Lock held shared. */
static int64_t seek_result(const struct filemap *f, int64_t offset, uint32_t whence)
{
	int64_t at;

	switch (whence) {
	case SEEK_SET:
		return offset < 0 ? -EINVAL : offset;
	case SEEK_END:
		if (__builtin_add_overflow((int64_t)f->size, offset, &offset) || offset < 0)
			return -EINVAL;
		return offset;
	case SEEK_TO_DATA: case SEEK_TO_HOLE:
		if (offset < 0 || (uint64_t)offset >= f->size)
			return -ENXIO;
		if (f->own)	/* what programs stored there is data, too: its file knows */
			at = own_seek(f, (uint64_t)offset, whence == SEEK_TO_DATA);
		else
			at = (int64_t)seek(f, (uint64_t)offset, whence == SEEK_TO_DATA);
		return whence == SEEK_TO_DATA && at == (int64_t)f->size ? -ENXIO : at;
	}
	return -EINVAL;
}

enum serve_verdict serve_lseek(struct server *s, struct serve_handle *h, const char *arg,
			      struct serve_reply *r)
{
	struct wire_lseek in;
	struct wire_lseek_out out;
	int64_t at;

	memcpy(&in, arg, sizeof(in));
	file_lock_take(&h->f->lock, 0);
	at = seek_result(h->f, (int64_t)in.offset, in.whence);
	file_lock_give(&h->f->lock);
	if (at < 0)
		return serve_error(r, (int)at);
	out.offset = (uint64_t)at;
	return serve_answer(r, &out, sizeof(out));
}

/* -- FALLOCATE -------------------------------------------------------------------------- */

/* Has every page of [pos, end) a block, and one that it keeps? Those behind the end of file may be
 * preallocated, to be given back at the last close, so they don't count. Lock held. */
static int all_allocated(const struct filemap *f, uint64_t pos, uint64_t end, int keep_size)
{
	uint64_t at = pos >> DAXFS_PAGE_SHIFT, last = (end + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT;
	struct iomap m;

	if (keep_size ? last > (f->size + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT : end > f->size)
		return 0;
	for (; at < last; at = m.pgoff + m.len) {
		filemap_lookup(f, at, &m);
		if (m.type == IOMAP_HOLE)
			return 0;
	}
	return 1;
}

enum serve_verdict serve_fallocate(struct server *s, struct serve_handle *h, const char *arg,
			      struct serve_reply *r)
{
	struct daxfs_flush *ops = s->io->ops;
	struct filemap *f = h->f;
	struct wire_fallocate in;
	int ours, err;

	memcpy(&in, arg, sizeof(in));
	if (!(h->flags & SERVE_WRITE))
		return serve_error(r, -EBADF);
	if (!may_write(s) || !f->inode || in.mode & ~FALLOCATE_KEEP_SIZE || !in.length)
		return SERVE_CALL;
	if (in.length > MAX_FILE_SIZE || in.offset > MAX_FILE_SIZE - in.length)
		return SERVE_CALL;
	if (f->own)	/* never changes while a handle is open; its extents are no promise of storage */
		return SERVE_CALL;
	if (enter(s, f, 1))
		return serve_error(r, -EIO);
	ours = (state_of(f) & (FILEMAP_PLAIN | FILEMAP_UNSETTLED)) == FILEMAP_PLAIN
		&& all_allocated(f, in.offset, in.offset + in.length, !!(in.mode & FALLOCATE_KEEP_SIZE));
	if (ours) {
		touch_write(s, f, 1);
		/* Orders the times before the reply: what fallocate did is durable when it returns. */
		ops->drain(ops);
	}
	err = leave(s, f, 0);
	if (err)
		return serve_error(r, err);
	return ours ? SERVE_DONE : SERVE_CALL;
}
