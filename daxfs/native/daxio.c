/* SPDX-License-Identifier: MIT
 *
 * dax_io (daxio.h): a look-up for each extent, never for each page, and one copy for each piece. Limits:
 * it takes no blocks and changes no metadata; an extent outside every range ends in -EIO.
 */
#define _GNU_SOURCE
#include "daxfs/native/daxio.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxfs/native/own.h"
#include "daxfs/native/tracker.h"

#define PAGE_SIZE (UINT64_C(1) << DAXFS_PAGE_SHIFT)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23		/* Debian 12 has it; older headers don't */
#endif
#define IN_PAGE(pos) ((pos) & (PAGE_SIZE - 1))
#define WINDOW UINT64_C(65536)		/* a read fault maps the pages of so many aligned bytes that are there */
#define PREMAP_FROM WINDOW		/* shorter copies meet one or two windows: nothing to be won */
#define RESIDENT_PAGES 1024		/* looked at with one mincore */
#define GATHERED 1024			/* pieces of a write-back that are shared at once */

static const char zeros[PAGE_SIZE] __attribute__((aligned(64)));

static inline uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The extent or hole at pos, and how many of `size` bytes from pos on are in it. */
static uint64_t piece_at(const struct filemap *f, uint64_t pos, uint64_t size, struct iomap *m)
{
	filemap_lookup(f, pos >> DAXFS_PAGE_SHIFT, m);
	/* Compared in pages: a hole may have more of them than there are numbers for its bytes. */
	if (m->len > (size >> DAXFS_PAGE_SHIFT) + 1)
		return size;
	return smaller(size, (m->len << DAXFS_PAGE_SHIFT) - IN_PAGE(pos));
}

/* Leave the region: err, or -EIO where a page of it, or of the file's own range, went away. */
static int leave(const struct daxio *io, const struct filemap *f, int err)
{
	if (f->own && __atomic_load_n(&f->own->torn, __ATOMIC_SEQ_CST))
		err = -EIO;
	return range_leave(io->table, err);
}

/* Address of a mapped piece; NULL where it is not whole inside one range. */
static char *address_of(const struct daxio *io, const struct iomap *m)
{
	uint64_t avail;
	char *p = range_address(io->table, m->pfn, &avail);

	return p && m->len <= avail ? p : NULL;
}

/*
 * Have the kernel map the n bytes at p before they are stored to, at one fault for each window: a store
 * faults for its page alone, which costs more than copying into it (docs/performance.md). What is mapped
 * already costs one load a window. Only on tmpfs: elsewhere a read fault maps without the right to write, and
 * on real pmem a load of a bad line is a machine check where a store is not.
 */
static void premap(const struct daxio *io, const char *p, uint64_t n)
{
	const char *end = p + n;

	if (!io->ram || n < PREMAP_FROM)
		return;
	for (; p < end; p = (const char *)(((uintptr_t)p | (WINDOW - 1)) + 1))
		*(const volatile char *)p;
}

/* Whether all of the n bytes at p, which begin on a page, have memory: premap has mapped what has. */
static int all_resident(char *p, uint64_t n)
{
	unsigned char there[RESIDENT_PAGES];
	uint64_t some, i;

	for (; n; p += some, n -= some) {
		some = smaller(n, RESIDENT_PAGES * PAGE_SIZE);
		if (mincore(p, some, there))
			return 0;
		for (i = 0; i < some >> DAXFS_PAGE_SHIFT; i++)
			if (!(there[i] & 1))
				return 0;
	}
	return 1;
}

/* The same for pages that may have no memory yet, as in a source with holes: the kernel gives it to all of
 * them at once. Only a hint; 5.14 and later. */
static void premap_new(const struct daxio *io, char *p, uint64_t n)
{
	uint64_t head = IN_PAGE((uintptr_t)p);

	if (n < PREMAP_FROM)
		return;
	premap(io, p, n);
	p -= head;
	n = (n + head + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
	if (!io->ram || !all_resident(p, n))
		madvise(p, n, MADV_POPULATE_WRITE);
}

int dax_copy_out(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size, char *target)
{
	struct iomap m;
	const char *source;
	uint64_t n;
	int err = range_enter(io->table);

	if (err)
		return err;
	for (; size; pos += n, target += n, size -= n) {
		n = piece_at(f, pos, size, &m);
		if (m.type != IOMAP_MAPPED && f->own) {
			err = own_read(f, pos, n, target);
			if (err)
				break;
			continue;
		}
		if (m.type != IOMAP_MAPPED) {
			memset(target, 0, n);
			continue;
		}
		source = address_of(io, &m);
		if (!source) {
			err = -EIO;
			break;
		}
		memcpy(target, source + IN_PAGE(pos), n);
	}
	return leave(io, f, err);
}

/* Append n bytes at p to iov[*count], joined to the piece before where they follow on it. */
static int put_piece(struct iovec *iov, int *count, int max, const char *p, uint64_t n)
{
	struct iovec *last = *count ? iov + *count - 1 : NULL;

	if (last && (const char *)last->iov_base + last->iov_len == p) {
		last->iov_len += n;
		return 0;
	}
	if (*count == max)
		return -E2BIG;
	iov[(*count)++] = (struct iovec){(void *)p, n};
	return 0;
}

int dax_pieces(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size,
	       struct iovec *iov, int max)
{
	struct iomap m;
	const char *p;
	uint64_t n;
	int count = 0, err;

	if (f->own)
		return -E2BIG;	/* a program may take pages of it away while they are sent */
	for (; size; pos += n, size -= n) {
		n = piece_at(f, pos, size, &m);
		if (m.type == IOMAP_MAPPED) {
			p = address_of(io, &m);
			if (!p)
				return -EIO;
			p += IN_PAGE(pos);
		} else {
			p = zeros;
			n = smaller(n, sizeof(zeros));
		}
		err = put_piece(iov, &count, max, p, n);
		if (err)
			return err;
	}
	return count;
}

int dax_touch(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size)
{
	uint64_t end = pos + size, n;
	struct iomap m;
	const char *p;
	int err = range_enter(io->table);

	if (err)
		return err;
	for (; pos < end; pos += n) {
		n = piece_at(f, pos, end - pos, &m);
		p = m.type == IOMAP_MAPPED ? address_of(io, &m) : NULL;
		if (p)
			for (uint64_t at = 0; at < IN_PAGE(pos) + n; at += PAGE_SIZE)
				*(const volatile char *)(p + at);
		else if (m.type == IOMAP_MAPPED)
			err = -EIO;
	}
	return leave(io, f, err);
}

int dax_covered(const struct filemap *f, uint64_t pos, uint64_t size)
{
	struct iomap m;
	uint64_t at = pos >> DAXFS_PAGE_SHIFT, last;

	if (!size)
		return 1;
	if (size - 1 > UINT64_MAX - pos)
		return 0;
	for (last = (pos + size - 1) >> DAXFS_PAGE_SHIFT; at <= last; at = m.pgoff + m.len) {
		filemap_lookup(f, at, &m);
		if (m.type != IOMAP_MAPPED)
			return 0;
	}
	return 1;
}

/* Through the cache: n bytes to p, which is at pos of the file, in the piece m. */
static int store_marked(struct daxio *io, struct filemap *f, const struct iomap *m, uint64_t pos, char *p,
			const char *source, uint64_t n)
{
	int err = tracker_mark(f, pos, n, m->pfn);

	if (err)
		return err;
	/* Marked before the store: a flush between the two may find it clean, never the other way round. */
	io->ops->store(io->ops, p, source, n);
	DAXFS_COUNT(io->dirtied_bytes, tracker_span(f->tracker, pos, n));
	return 0;
}

/* Enter, to store something. 0, -EROFS, -EIO. */
static int enter_to_store(struct daxio *io)
{
	/* Mapped without PROT_WRITE: a store would end the process. */
	return io->writable ? range_enter(io->table) : -EROFS;
}

/* Nothing of it is dirty after the next drain, so nothing is marked. */
static void store_flushed(struct daxfs_flush *ops, char *p, const char *source, uint64_t n)
{
	ops->store(ops, p, source, n);
	ops->flush(ops, p, n);
}

int dax_copy_in(struct daxio *io, struct filemap *f, uint64_t pos, uint64_t size, const char *source, int nt)
{
	int small = size < io->nt_threshold;
	struct iomap m;
	char *p;
	uint64_t n;
	int err = enter_to_store(io);

	if (err)
		return err;
	for (; size && !err; pos += n, source += n, size -= n) {
		n = piece_at(f, pos, size, &m);
		p = m.type == IOMAP_MAPPED ? address_of(io, &m) : NULL;
		if (!p) {
			err = -EIO;
			break;
		}
		premap(io, p + IN_PAGE(pos), n);
		if (nt && small)
			store_flushed(io->ops, p + IN_PAGE(pos), source, n);
		else if (nt)
			io->ops->nt_store(io->ops, p + IN_PAGE(pos), source, n);
		else
			err = store_marked(io, f, &m, pos, p + IN_PAGE(pos), source, n);
	}
	return leave(io, f, err);
}

void dax_populate(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size)
{
	uint64_t end = pos + size, n;
	struct iomap m;
	char *p;

	if (size < PREMAP_FROM || enter_to_store(io))
		return;
	for (; pos < end; pos += n) {
		n = piece_at(f, pos, end - pos, &m);
		p = m.type == IOMAP_MAPPED ? address_of(io, &m) : NULL;
		if (p)
			premap_new(io, p + IN_PAGE(pos), n);
	}
	range_exit(io->table);
}

int dax_zero(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size)
{
	struct iomap m;
	uint64_t n;
	char *p;
	int err = enter_to_store(io);

	if (err)
		return err;
	for (; size && !err; pos += n, size -= n) {
		n = piece_at(f, pos, size, &m);
		p = m.type == IOMAP_MAPPED ? address_of(io, &m) : NULL;
		if (p) {
			premap_new(io, p + IN_PAGE(pos), n);
			io->ops->nt_fill(io->ops, p + IN_PAGE(pos), 0, n);
		} else if (m.type == IOMAP_MAPPED) {
			err = -EIO;
		}
	}
	return leave(io, f, err);
}

int dax_fill_new(struct daxio *io, uint64_t pgoff, uint64_t pages, uint64_t pfn, uint64_t pos, uint64_t size,
		 const char *source)
{
	struct iomap m = {pgoff, pages, pfn, IOMAP_MAPPED, 0};
	uint64_t start = pgoff << DAXFS_PAGE_SHIFT, end = (pgoff + pages) << DAXFS_PAGE_SHIFT;
	uint64_t first = pos > start ? pos : start, last = smaller(pos + size, end);
	char *p;
	int err = enter_to_store(io);

	if (err)
		return err;
	p = address_of(io, &m);
	if (!p) {
		err = -EIO;
	} else if (pos >= end || pos + size <= start) {
		err = -EINVAL;
	} else {
		premap_new(io, p, end - start);
		io->ops->nt_fill(io->ops, p, 0, first - start);
		io->ops->nt_store(io->ops, p + (first - start), source + (first - pos), last - first);
		io->ops->nt_fill(io->ops, p + (last - start), 0, end - last);
	}
	return range_leave(io->table, err);
}

/* What a write-back has to flush, gathered: so that helpers have a share, and that the walk and the flush are
 * told apart by two looks at the clock, not by two for each run of dirty units. */
struct gather {
	struct daxio *io;
	struct fsync_run *run;		/* NULL: not timed */
	uint64_t bytes;
	uint32_t n;
	struct flush_piece piece[GATHERED];
};

static void hand_out(struct gather *g)
{
	struct flushers *helpers = __atomic_load_n(&g->io->flushers, __ATOMIC_ACQUIRE);
	struct daxfs_flush *ops = g->io->ops;

	fsync_lap(g->run, FSYNC_WALK);
	/* A recording has one order of events, that of the caller. */
	if (helpers && g->bytes >= FLUSHERS_FROM && !ops->recorder) {
		flushers_run(helpers, ops, g->piece, g->n);
	} else {
		for (uint32_t i = 0; i < g->n; i++)
			ops->flush(ops, g->piece[i].p, g->piece[i].n);
	}
	g->n = 0;
	g->bytes = 0;
	fsync_lap(g->run, FSYNC_FLUSH);
}

static void put_flush(struct gather *g, const char *p, uint64_t n)
{
	int shared = __atomic_load_n(&g->io->flushers, __ATOMIC_ACQUIRE) != NULL;
	uint64_t some;

	for (; n; p += some, n -= some) {
		some = shared ? smaller(n, FLUSH_PIECE) : n;
		if (g->n == GATHERED)
			hand_out(g);
		g->piece[g->n++] = (struct flush_piece){p, some};
		g->bytes += some;
	}
}

/* Queue [pos, pos + len) where it is mapped and inside the file, the rest of its last page with it: a mark
 * may be older than a hole, or wider than what was stored. Bytes, or -errno. */
static int64_t flush_run(struct gather *g, const struct filemap *f, uint64_t pos, uint64_t len)
{
	uint64_t size = (f->size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1), end, n;
	struct iomap m;
	const char *p;
	int64_t total = 0;

	for (end = smaller(pos + len, size); pos < end; pos += n) {
		n = piece_at(f, pos, end - pos, &m);
		if (m.type != IOMAP_MAPPED)
			continue;
		p = address_of(g->io, &m);
		if (!p)
			return -EIO;
		put_flush(g, p + IN_PAGE(pos), n);
		total += (int64_t)n;
	}
	return total;
}

void dax_trace_writeback(struct trace_ring *r, enum trace_dax what, const struct filemap *f, uint64_t first,
			 uint64_t last, uint64_t ns)
{
	struct trace_dax_body body = {.pgoff = first};

	if (!r)
		return;
	if (what == DAX_WRITEBACK_ONE)
		body.max_pgoff = last - first;
	else	/* Linux names the last page; of a whole file the last one that a file can have */
		body.max_pgoff = last > DAXFS_MAX_PGOFF ? INT64_MAX >> DAXFS_PAGE_SHIFT : last - 1;
	trace_dax(r, what, f->ino, 0, ns, &body);
}

/* The first byte behind `at`, by whole pieces and at least one piece on, that the file fd has memory for. The
 * file's offset is used by nobody. */
static uint64_t next_memory(int fd, uint64_t at, uint64_t end)
{
	off_t found = fd < 0 ? -1 : lseek(fd, (off_t)at, SEEK_DATA);
	uint64_t next = at + FLUSH_PIECE;

	if (found < 0)
		return fd >= 0 && errno == ENXIO ? end : smaller(next, end);
	found -= found % (off_t)FLUSH_PIECE;
	return smaller((uint64_t)found > next ? (uint64_t)found : next, end);
}

/* Queue those of the n bytes at p, which begin on a page and are all in one range, that have memory, in
 * pieces: what has none on a file system in memory has no line in a cache either, and would be given storage.
 * p is byte `at` of the file fd, which is asked where a whole piece is empty: in a large region most are. */
static int64_t flush_resident(struct gather *g, char *p, uint64_t n, int fd, uint64_t at)
{
	unsigned char there[FLUSH_PIECE >> DAXFS_PAGE_SHIFT];
	uint64_t some, i, from, end = at + n;
	int64_t total = 0, found;

	for (; n; p += some, at += some, n -= some) {
		some = smaller(n, FLUSH_PIECE);
		memset(there, 1, sizeof(there));
		if (g->io->ram && mincore(p, some, there))
			return -errno;
		for (i = 0, found = 0; i < some; i = from + PAGE_SIZE) {
			while (i < some && !(there[i >> DAXFS_PAGE_SHIFT] & 1))
				i += PAGE_SIZE;
			for (from = i; from < some && there[from >> DAXFS_PAGE_SHIFT] & 1;)
				from += PAGE_SIZE;
			if (from > i)
				put_flush(g, p + i, smaller(from, some) - i);
			found += (int64_t)(from - i);
		}
		total += found;
		if (!found)
			some = next_memory(fd, at, end) - at;
	}
	return total;
}

/* An extent of a file's own range: where it is MAPPED and inside the file. Bytes, or -errno. */
static int64_t flush_own(struct gather *g, const struct filemap *f, uint64_t first, uint64_t last)
{
	uint64_t size = (f->size + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT, n;
	struct iomap m;
	int64_t total = 0, done;
	char *p;

	for (last = smaller(last, size); first < last; first += n) {
		filemap_lookup(f, first, &m);
		n = m.len = smaller(m.len, last - first);
		if (m.type != IOMAP_MAPPED)
			continue;
		p = address_of(g->io, &m);
		if (!p)
			return -EIO;
		done = flush_resident(g, p, n << DAXFS_PAGE_SHIFT, f->own->fd, first << DAXFS_PAGE_SHIFT);
		if (done < 0)
			return done;
		total += done;
	}
	return total;
}

/* An extent of the region, whosever its pages are. Bytes, or -errno. */
static int64_t flush_region(struct gather *g, uint64_t first, uint64_t last)
{
	const struct range *r;
	int64_t total = 0, done;
	uint64_t n, at;

	/* Sources that don't end on 2 MiB have a gap behind them; the last extent may end behind the region. */
	while ((first = range_next(g->io->table, first)) < last) {
		r = range_lookup(g->io->table, first);
		n = smaller(r->pfn_end, last) - first;
		at = (first - r->pfn_start) << DAXFS_PAGE_SHIFT;
		done = flush_resident(g, r->addr + at, n << DAXFS_PAGE_SHIFT, r->fd, at);
		if (done < 0)
			return done;
		total += done;
		first += n;
	}
	return total;
}

/* S15: every active extent. Bytes, or -errno. */
static int64_t flush_extents(struct gather *g, struct filemap *f, struct trace_ring *trace)
{
	const struct extent_map *m = tracker_extents(f);
	int64_t total = 0, done;

	for (unsigned n = 0; m && n < EXTENTS; n++) {
		if (!extent_is_active(m, n))
			continue;
		dax_trace_writeback(trace, DAX_WRITEBACK_ONE, f, n * m->pages, (n + 1) * m->pages, 0);
		done = f->own ? flush_own(g, f, n * m->pages, (n + 1) * m->pages)
			: flush_region(g, n * m->pages, (n + 1) * m->pages);
		if (done < 0)
			return done;
		total += done;
	}
	return total;
}

/* A file that has none was never stored to through us. */
static const struct dax_tracker *tracker_of(const struct filemap *f)
{
	return f->tracker ? f->tracker : &dax_tracker_none;
}

/* Flush what is dirty from pos to end, which are bounds of units. Bytes, or -errno. */
static int64_t walk(struct gather *g, struct filemap *f, uint64_t pos, uint64_t end,
		    struct trace_ring *trace)
{
	const struct dax_tracker *t = tracker_of(f);
	int64_t total = 0, done;
	uint64_t run;

	for (; (pos = t->next_run(f, pos, &run)) < end; pos += run) {
		run = smaller(run, end - pos);
		dax_trace_writeback(trace, DAX_WRITEBACK_ONE, f, pos >> DAXFS_PAGE_SHIFT,
				    (pos + run + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT, 0);
		done = flush_run(g, f, pos, run);
		if (done < 0)
			return done;
		total += done;
	}
	return total;
}

static int64_t write_back(struct daxio *io, struct filemap *f, uint64_t first, uint64_t last,
			  struct trace_ring *trace, struct fsync_run *run)
{
	uint64_t mask, pos = smaller(first, DAXFS_MAX_PGOFF) << DAXFS_PAGE_SHIFT;
	uint64_t end = smaller(last, DAXFS_MAX_PGOFF) << DAXFS_PAGE_SHIFT;
	struct gather g;
	int64_t total;
	int error = range_enter(io->table);

	if (error)
		return error;
	/* A unit is cleaned as a whole, so it is flushed as a whole. */
	mask = (UINT64_C(1) << tracker_of(f)->shift) - 1;
	pos &= ~mask;
	end = (end + mask) & ~mask;
	g.io = io;	/* the rest as it is read: the pieces are too many to be cleared */
	g.run = run;
	g.bytes = g.n = 0;
	total = tracker_of(f)->extents ? flush_extents(&g, f, trace) : walk(&g, f, pos, end, trace);
	hand_out(&g);
	if (total >= 0) {
		/* Orders the flushed data before the marks go, and before size, times and the reply to fsync. */
		io->ops->drain(io->ops);
		error = __atomic_load_n(&io->ops->error, __ATOMIC_ACQUIRE);
		fsync_lap(run, FSYNC_DRAIN);
		/* Never before flush and drain: what was stored in between would be lost. */
		if (!error && !tracker_of(f)->extents)
			tracker_of(f)->clean(f, pos, end - pos);
	}
	error = leave(io, f, -error);
	fsync_lap(run, FSYNC_WALK);
	if (error)
		return error;
	if (total >= 0) {
		DAXFS_COUNT(io->flushed_bytes, total);
		DAXFS_COUNT(io->writebacks, 1);
	}
	return total;
}

int64_t dax_writeback_part(struct daxio *io, struct filemap *f, uint64_t first, uint64_t last,
			   struct fsync_run *run)
{
	return write_back(io, f, first, last, NULL, run);
}

int64_t dax_persist(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t len)
{
	struct gather g;
	int64_t total;
	int err = range_enter(io->table);

	if (err)
		return err;
	g.io = io;
	g.run = NULL;
	g.bytes = g.n = 0;
	total = flush_run(&g, f, pos, len);
	hand_out(&g);
	/* Orders what was flushed before what the caller stores next, and its reply. */
	io->ops->drain(io->ops);
	if (total >= 0)
		DAXFS_COUNT(io->flushed_bytes, total);
	err = leave(io, f, -__atomic_load_n(&io->ops->error, __ATOMIC_ACQUIRE));
	return err ? err : total;
}

static int is_dirty(struct daxio *io, struct filemap *f, uint64_t first, uint64_t last)
{
	uint64_t len, at;

	if (range_enter(io->table))
		return 0;
	at = tracker_of(f)->next_run(f, smaller(first, DAXFS_MAX_PGOFF) << DAXFS_PAGE_SHIFT, &len);
	range_exit(io->table);
	return at != UINT64_MAX && at >> DAXFS_PAGE_SHIFT < last;
}

int64_t dax_writeback(struct daxio *io, struct filemap *f, uint64_t first, uint64_t last,
		      struct fsync_run *run)
{
	struct trace_ring *trace = trace_of(io->trace, TRACE_WRITEBACK);
	uint64_t began = run ? run->last : latency_now(), took;
	int64_t total;

	if (trace && !is_dirty(io, f, first, last))
		trace = NULL;	/* as Linux says nothing of a file that has no entries */
	dax_trace_writeback(trace, DAX_WRITEBACK_RANGE, f, first, last, 0);
	total = write_back(io, f, first, last, trace, run);
	took = (run ? run->last : latency_now()) - began;
	dax_trace_writeback(trace, DAX_WRITEBACK_RANGE_DONE, f, first, last, took);
	if (total > 0) {
		latency_add(&io->writeback_ns, took);
		latency_add(&io->writeback_pages, ((uint64_t)total + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT);
	}
	return total;
}
