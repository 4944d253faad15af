/* SPDX-License-Identifier: MIT
 *
 * Writeback of what clients stored (handler.h). Order, as DESIGN.md section 8 has it: lock entries, protect
 * every mapping of them, flush, drain, clean, unlock. A store that comes after the protection is a fault,
 * which waits for the entry and marks it again; so no store is lost, whenever it comes.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "daxfs/native/handler_clients.h"
#include "daxfs/native/own.h"
#include "daxfs/native/tracker.h"

#define BATCH 64			/* entries that are flushed with one drain */

struct batch {
	struct entry entry[BATCH];
	int open[BATCH];		/* somebody may store there without a fault: it is flushed and stays dirty */
	int n;
};

static uint64_t behind(const struct entry *e)
{
	return e->pgoff + (UINT64_C(1) << e->order);
}

/* 0: nobody stores there without a fault; 1: it could not be had. */
static int protect_view(const struct handler_view *v)
{
	uint64_t at, end = v->start + v->length, step = UINT64_C(1) << DAXFS_PAGE_SHIFT;
	int rc = handler_set_protection(v->queue->fd, v->start, v->length, 1);

	/* The kernel stops at what it finds unregistered: the client has mapped something else over a part. */
	for (at = v->start; rc == -ENOENT && at < end; at += step) {
		rc = handler_set_protection(v->queue->fd, at, step, 1);
		rc = rc ? rc : -ENOENT;
	}
	/* It was unmapped, or its process has ended. */
	return rc && rc != -ENOENT && rc != -ESRCH;
}

/* No client may store to e without a fault: 0; 1: one does what it wants (its addresses are something else by
 * now, or change all the time), which must not keep others from their fsync; -ENOMEM. */
static int protect(struct handler *h, struct handler_file *file, const struct entry *e)
{
	struct handler_view *view;
	int n, i, open = 0;

	/* Who shows it from now on finds the entry locked, and waits. */
	n = handler_views(h, file, e->pgoff, behind(e), &view);
	if (n < 0)
		return n;
	for (i = 0; i < n; i++)
		open |= protect_view(&view[i]);
	handler_leave_views(h, view, n);
	return open;
}

/* The tracker takes [first, last) for dirty, and the extents say where the file has pages: others are not
 * flushed. File lock held. 0 or -errno; -E2BIG: the file has grown behind what has addresses. */
static int mark(struct handler *h, struct filemap *f, uint64_t first, uint64_t last)
{
	int err;

	if (!f->own->pfn || last > f->own->room)
		return -E2BIG;
	err = own_look(f, first, last);
	if (err >= 0 && err < 2)
		err = own_learn(f, first, last, -1u);
	if (err < 0)
		return err;
	err = range_enter(h->io->table);
	if (err)
		return err;
	err = tracker_mark(f, first << DAXFS_PAGE_SHIFT, (last - first) << DAXFS_PAGE_SHIFT, f->own->pfn + first);
	return range_leave(h->io->table, err);
}

/* Flush and drain what the entries name. File lock held, exclusive. Pages or -errno. */
static int64_t flush(struct handler *h, struct filemap *f, const struct batch *b, struct fsync_run *fsync)
{
	uint64_t size = (f->size + (UINT64_C(1) << DAXFS_PAGE_SHIFT) - 1) >> DAXFS_PAGE_SHIFT, last;
	int64_t done;
	int i, err;

	for (i = 0; i < b->n; i++) {
		last = behind(&b->entry[i]) < size ? behind(&b->entry[i]) : size;
		/* Else it was cut off since. */
		err = b->entry[i].pgoff < last ? mark(h, f, b->entry[i].pgoff, last) : 0;
		if (err)
			return err;
	}
	if (f->tracker && f->tracker->extents)
		return 0;	/* the fsync that asked flushes all that is active: not once more for each batch */
	fsync_lap(fsync, FSYNC_LOOK);
	done = dax_writeback_part(h->io, f, b->entry[0].pgoff, behind(&b->entry[b->n - 1]), fsync);
	return done < 0 ? done : (done + (1 << DAXFS_PAGE_SHIFT) - 1) >> DAXFS_PAGE_SHIFT;
}

/* The next dirty entries with a page in [*at, last), locked and protected; *at: behind them. 0 or -errno. */
static int collect(struct handler *h, struct handler_file *file, uint64_t *at, uint64_t last, struct batch *b)
{
	int err = 0;

	for (b->n = 0; b->n < BATCH && *at < last && !err; b->n++) {
		if (!entry_next_dirty(&file->entries, *at, last - 1, &b->entry[b->n]))
			break;
		*at = behind(&b->entry[b->n]);
		b->open[b->n] = protect(h, file, &b->entry[b->n]);
		err = b->open[b->n] < 0 ? b->open[b->n] : 0;
	}
	return err;
}

/* One run over the dirty entries of [first, last). */
struct run {
	struct handler *h;
	struct handler_file *file;
	uint64_t first, last, at;	/* at: how far it is */
	struct trace_ring *trace;	/* NULL: nobody watches */
	int begun;			/* something was dirty */
	struct fsync_run *fsync;
};

/* Lock and protect the next dirty entries, flush, drain, clean, unlock. Pages or -errno. */
static int64_t write_batch(struct run *r, struct batch *b)
{
	struct filemap *f = r->file->f;
	int64_t done = collect(r->h, r->file, &r->at, r->last, b);
	int i;

	if (b->n && !r->begun++)
		dax_trace_writeback(r->trace, DAX_WRITEBACK_RANGE, f, r->first, r->last, 0);
	if (!done && b->n) {
		fsync_take_lock(r->fsync, &f->lock, FSYNC_LOOK);
		/* Its drain orders what clients stored before the marks go, and before the reply. */
		done = f->own ? flush(r->h, f, b, r->fsync) : -EIO;
		file_lock_give(&f->lock);
	}
	for (i = 0; i < b->n; i++) {
		if (done >= 0 && !b->open[i])
			entry_clean(&r->file->entries, &b->entry[i]);
		entry_unlock(&r->file->entries, &b->entry[i]);
	}
	for (i = 0; i < b->n && done >= 0; i++)
		dax_trace_writeback(r->trace, DAX_WRITEBACK_ONE, f, b->entry[i].pgoff, behind(&b->entry[i]), 0);
	return done;
}

static int64_t write_back(struct run *r)
{
	struct handler_stats *s = &r->h->stats;
	uint64_t took = latency_now();
	struct batch b;
	int64_t total = 0, done;

	do {
		done = write_batch(r, &b);
		total = done < 0 ? done : total + done;
	} while (done >= 0 && b.n == BATCH);
	if (!r->begun)
		return total;
	took = latency_now() - took;
	dax_trace_writeback(r->trace, DAX_WRITEBACK_RANGE_DONE, r->file->f, r->first, r->last, took);
	if (total >= 0) {
		latency_add(&s->writeback_ns, took);
		latency_add(&s->writeback_pages, (uint64_t)total);
	}
	return total;
}

int64_t handler_writeback(struct handler *h, struct filemap *f, uint64_t first, uint64_t last,
			  struct fsync_run *fsync)
{
	struct run r = {.h = h, .file = handler_enter_file(h, f), .first = first, .last = last, .at = first,
			.trace = trace_of(h->io->trace, TRACE_WRITEBACK), .fsync = fsync};
	int64_t done = 0;

	if (r.file) {
		done = write_back(&r);
		handler_leave_file(h, r.file);
	}
	fsync_lap(fsync, FSYNC_LOOK);
	return done;
}

/* Page pgoff goes out of every mapping, and what is in it comes back: a piece of its huge page can't be had
 * in another way. Dirty, and the huge page with it: its split forgets what the kernel knew (pagemap.h).
 * Entry and file lock held: no client of ours sees it empty. 0 or -errno. */
static int displace(struct handler *h, struct filemap *f, uint64_t pgoff)
{
	static __thread char page[1 << DAXFS_PAGE_SHIFT];
	uint64_t base = pgoff & ~FAULT_COLOUR, last = base + FAULT_PMD_PAGES;
	off_t at = (off_t)(pgoff << DAXFS_PAGE_SHIFT);
	int err;

	last = last < f->own->pages ? last : f->own->pages;
	if (pgoff >= last || own_look(f, pgoff, pgoff + 1) == 0)
		return 0;
	err = mark(h, f, base, last);
	if (!err)
		err = own_read(f, (uint64_t)at, sizeof(page), page);
	if (!err)
		err = own_punch(f, (uint64_t)at, (uint64_t)at + sizeof(page));
	if (err)
		return err;
	/* A full tmpfs may have given the room to somebody else: then these bytes are lost. */
	if (pwrite(f->own->fd, page, sizeof(page), at) != (ssize_t)sizeof(page))
		return -errno;
	return mark(h, f, pgoff, pgoff + 1);
}

int handler_displace(struct handler *h, struct filemap *f, uint64_t first, uint64_t last)
{
	struct handler_file *file = handler_enter_file(h, f);
	struct entry e;
	int err = 0;

	for (; file && first < last && !err; first++) {
		/* Who is about to map it has its entry; who comes later sees that it is poisoned. */
		err = entry_grab(&file->entries, first, 0, &e);
		if (err)
			break;
		file_lock_take(&f->lock, 1);
		err = f->own ? displace(h, f, first) : -EIO;
		file_lock_give(&f->lock);
		entry_unlock(&file->entries, &e);
	}
	if (file)
		handler_leave_file(h, file);
	return err;
}

/* Have all clients see page e->pgoff..: mapped for loads, where it is not mapped. Entry locked. */
static int map_again(struct handler *h, struct handler_file *file, uint64_t pgoff)
{
	struct handler_view *view;
	int n, i;

	n = handler_views(h, file, pgoff, pgoff + 1, &view);
	if (n < 0)
		return n;
	for (i = 0; i < n; i++)	/* -EEXIST: it is mapped; -EFAULT: cut meanwhile; else it has ended */
		(void)handler_map(view[i].queue->fd, view[i].start, view[i].length, 1);
	handler_leave_views(h, view, n);
	return 0;
}

int handler_restore(struct handler *h, struct filemap *f, uint64_t first, uint64_t last)
{
	struct handler_file *file = handler_enter_file(h, f);
	struct entry e;
	int err = 0, good;

	for (; file && first < last && !err; first++) {
		err = entry_grab(&file->entries, first, 0, &e);
		if (err)
			break;
		file_lock_take(&f->lock, 1);
		good = f->own && first < f->own->pages && !(handler_is_bad(h, f, first) & FAULT_POISON);
		if (good)
			err = own_reserve(f, first, first + 1);
		file_lock_give(&f->lock);
		if (good && !err) {
			entry_insert(&file->entries, &e, 0);
			err = map_again(h, file, first);
		}
		entry_unlock(&file->entries, &e);
	}
	if (file)
		handler_leave_file(h, file);
	return err;
}

struct taking {
	struct handler *h;
	struct filemap *f;
	uint64_t end;			/* pages of the file */
};

static int take(void *ctx, const struct entry *e)
{
	struct taking *t = ctx;
	uint64_t last = behind(e) < t->end ? behind(e) : t->end;

	return e->pgoff < last ? mark(t->h, t->f, e->pgoff, last) : 0;
}

int handler_take(struct handler *h, struct filemap *f)
{
	struct handler_file *file = handler_enter_file(h, f);
	struct taking t = {h, f, 0};
	int rc = 0;

	if (!file)
		return 0;
	/* Here the file's lock is the outer one, as no entry is waited for. */
	file_lock_take(&f->lock, 1);
	t.end = (f->size + (UINT64_C(1) << DAXFS_PAGE_SHIFT) - 1) >> DAXFS_PAGE_SHIFT;
	rc = f->own ? entry_take_dirty(&file->entries, 0, UINT64_MAX, take, &t) : -EIO;
	file_lock_give(&f->lock);
	handler_leave_file(h, file);
	return rc;
}

uint64_t handler_dirty(struct handler *h, const struct filemap *f)
{
	struct handler_file *file = handler_enter_file(h, f);
	uint64_t dirty = 0;

	if (file) {
		entry_count(&file->entries, &dirty);
		handler_leave_file(h, file);
	}
	return dirty;
}
