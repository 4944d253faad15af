/* SPDX-License-Identifier: MIT
 *
 * userfaultfd messages into mappings (handler.h). Order of one fault, as in the kernel's: look up and decide,
 * take storage, mark dirty where it stores, insert the mapping, and the program goes on.
 */
#define _GNU_SOURCE
#include "daxfs/native/handler.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daxfs/native/handler_clients.h"
#include "daxfs/native/own.h"

#define PAGE_SIZE (UINT64_C(1) << DAXFS_PAGE_SHIFT)
#define TRIES 64			/* of one insert, while the client forks or moves mappings */

/* Debian 12's header ends with 6.1. */
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#define HANDLER_FEATURES (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM \
			  | 1 << 12 /* WP_HUGETLBFS_SHMEM */ | 1 << 13 /* WP_UNPOPULATED */)
#define HANDLER_CONTINUE_WP (UINT64_C(1) << 1)	/* UFFDIO_CONTINUE_MODE_WP, 6.4 */
struct handler_poison_args {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define HANDLER_POISON _IOWR(UFFDIO, 0x08, struct handler_poison_args)

/* One fault, from the message to the answer. */
struct fault {
	struct handler *h;
	int fd;
	struct handler_piece *piece;
	struct fault_args args;
	struct fault_decision decision;
	struct entry entry;		/* locked from grab to the answer */
	uint64_t start, length;		/* addresses: what is going to be mapped */
	int there;			/* the message says that the page is in the file */
	int hole;			/* there was nothing when it was decided */
	int stale;			/* a page that the file's map has was not there */
	int behind;			/* the page is behind the end of the range's file: the kernel says SIGBUS */
	struct handler_rows *rows;
	struct fault_seen seen;
};

/* Have the client's threads that wait in [start, start + length) ask again. */
static void wake(int fd, uint64_t start, uint64_t length)
{
	struct uffdio_range range = {start, length};

	/* Nothing to be done about a failure: the mapping is gone, and its waiters with it. */
	(void)ioctl(fd, UFFDIO_WAKE, &range);
}

int handler_poison(int fd, uint64_t start, uint64_t length)
{
	struct handler_poison_args args = {.range = {start, length}};
	int tries;

	for (tries = 0; tries < TRIES; tries++) {
		if (!ioctl(fd, HANDLER_POISON, &args))
			return 0;
		if (errno != EAGAIN)
			return -errno;
		if (args.updated > 0) {
			args.range.start += (uint64_t)args.updated;
			args.range.len -= (uint64_t)args.updated;
		}
		sched_yield();
	}
	return -EAGAIN;
}

int handler_set_protection(int fd, uint64_t start, uint64_t length, int on)
{
	struct uffdio_writeprotect args = {.range = {start, length}};
	int tries;

	args.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
	for (tries = 0; ioctl(fd, UFFDIO_WRITEPROTECT, &args); tries++) {
		if (errno != EAGAIN || tries == TRIES)
			return -errno;
		sched_yield();	/* the client forks or moves mappings: that ends */
	}
	return 0;
}

int handler_available(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = HANDLER_FEATURES};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), there;

	there = fd >= 0 && !ioctl(fd, UFFDIO_API, &api);
	if (fd >= 0)
		close(fd);
	return there;
}

/*
 * The extent of an own range that a decision needs: the 2 MiB around the page, if they are all data or all
 * hole, or else the page alone. The FileMap may know; where not, the file is asked (filemap.h), which costs
 * what is looked at: not the 2 MiB where they can't matter (`whole` is 0), and nothing where the message says
 * that the page is there (should it go meanwhile, then its insert fails, and all is looked at). Lock held.
 */
static int extent_at(const struct fault *x, int whole, struct iomap *out)
{
	struct filemap *f = x->piece->file->f;
	uint64_t pgoff = x->args.pgoff, end = (f->size + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT;
	uint64_t first = whole ? pgoff & ~FAULT_COLOUR : pgoff, last = whole ? first + FAULT_PMD_PAGES : pgoff + 1;
	int there;

	*out = (struct iomap){first, last - first, first, IOMAP_MAPPED, 0};
	last = last < end ? last : end;
	if (pgoff >= last || (x->there && !whole))
		return 0;
	if (dax_covered(f, first << DAXFS_PAGE_SHIFT, (last - first) << DAXFS_PAGE_SHIFT))
		return 0;
	there = own_look(f, first, last);
	if (there == 1) {
		*out = (struct iomap){pgoff, 1, pgoff, IOMAP_MAPPED, 0};
		there = x->there ? 1 : own_look(f, pgoff, pgoff + 1);
	}
	if (!there)
		out->type = IOMAP_HOLE;
	return there < 0 ? there : 0;
}

/* The layout of the 2 MiB matters: with all of them data the decision would be a PMD, or say why not by what
 * comes behind that. */
static int layout_matters(const struct fault_args *a)
{
	struct iomap all = {a->pgoff & ~FAULT_COLOUR, FAULT_PMD_PAGES, 0, IOMAP_MAPPED, 0};
	struct fault_decision d = fault_decide(a, &all);

	return d.order || d.reason > FAULT_R_SHORT;
}

static int stores(const struct fault *x)
{
	return x->args.kind == FAULT_WRITE || x->args.kind == FAULT_MKWRITE;
}

static uint64_t address_of(const struct fault *x, uint64_t pgoff)
{
	return x->piece->start + ((pgoff - x->piece->pgoff) << DAXFS_PAGE_SHIFT);
}

/* A load of a hole takes a page as well: shared memory has no page of zeros that all share. With `syncs`
 * storage is durable on return, so before it is mapped (NEEDDSYNC). -EFAULT: the file was cut meanwhile. */
static int take_storage(struct filemap *f, const struct fault *x)
{
	uint64_t first = x->decision.order ? x->entry.pgoff : x->args.pgoff;
	uint64_t last = first + (UINT64_C(1) << x->decision.order);
	uint64_t end = (f->size + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT;

	if (x->args.pgoff >= end)
		return -EFAULT;
	return own_reserve(f, first, last < end ? last : end);
}

/* A program has punched a hole by itself (MADV_REMOVE): extents of the 2 MiB around pgoff anew. Lock held. */
static int learn_again(struct filemap *f, uint64_t pgoff)
{
	uint64_t first = pgoff & ~FAULT_COLOUR, last = first + FAULT_PMD_PAGES;
	uint64_t end = (f->size + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT;

	last = last < end ? last : end;
	return f->own->pfn && first < last ? own_learn(f, first, last, -1u) : 0;	/* else it has no extents */
}

#define DECIDE 1
#define TAKE 2

/* What the file has there, under its lock: DECIDE, and TAKE storage for what is going to be mapped, whose
 * entry is locked. 0, -errno; -EFAULT: the decision can't stand any more. */
static int look_up(struct fault *x, int what)
{
	struct filemap *f = x->piece->file->f;
	struct iomap extent = {0};
	int err, hole;

	file_lock_take(&f->lock, 1);
	err = f->own ? range_enter(x->h->io->table) : -EIO;
	if (err) {
		file_lock_give(&f->lock);
		return err;
	}
	x->args.size = f->size;
	x->behind = x->args.pgoff >= f->own->pages;
	x->args.flags &= ~(uint32_t)(FAULT_POISON | FAULT_POISON_PMD);
	x->args.flags |= handler_is_bad(x->h, f, x->args.pgoff);
	err = x->stale ? learn_again(f, x->args.pgoff) : 0;
	if (!err)
		err = extent_at(x, what & DECIDE ? layout_matters(&x->args) : x->decision.order, &extent);
	hole = extent.type == IOMAP_HOLE;
	if (!err && what & DECIDE) {
		/* Poison is of pages, with or without storage: as data it is looked at. */
		if (x->args.flags & (FAULT_POISON | FAULT_POISON_PMD))
			extent.type = IOMAP_MAPPED;
		x->decision = fault_decide(&x->args, &extent);
		x->hole = hole;
		seen_decided(&x->seen, &x->decision);
	} else if (!err && x->args.flags & (x->decision.order ? FAULT_POISON_PMD : FAULT_POISON)) {
		err = -EFAULT;	/* since the decision */
	}
	if (!err && what & TAKE && hole && x->decision.result != FAULT_SIGBUS)
		err = take_storage(f, x);
	err = range_leave(x->h->io->table, err);
	file_lock_give(&f->lock);
	return err;
}

/* The addresses that are mapped for the entry: a store dirties all of it, so all of it that is in the piece
 * may be writable, where the mapping has its colour; else the page. */
static void choose_addresses(struct fault *x)
{
	const struct handler_piece *p = x->piece;
	uint64_t first = x->args.pgoff, last = first + 1, end;

	if (x->entry.order && (x->decision.order || x->args.kind == FAULT_MKWRITE)) {
		end = p->pgoff + ((p->end - p->start) >> DAXFS_PAGE_SHIFT);
		first = x->entry.pgoff > p->pgoff ? x->entry.pgoff : p->pgoff;
		last = x->entry.pgoff + FAULT_PMD_PAGES < end ? x->entry.pgoff + FAULT_PMD_PAGES : end;
	}
	x->start = address_of(x, first);
	x->length = (last - first) << DAXFS_PAGE_SHIFT;
}

/* Decide, lock the entry, take storage, mark: 0, and unless it is SIGBUS the entry is locked; -errno: no
 * storage, no memory; -EFAULT: all anew. Where no layout makes it a PMD the entry comes first, and one look
 * at the file is enough. Else it is looked at again with the entry locked: it may have been cut, or another
 * thread was faster. */
static int prepare(struct fault *x)
{
	struct entry_map *entries = &x->piece->file->entries;
	int single = x->args.kind == FAULT_MKWRITE || !(x->args.flags & FAULT_PMD), err;

	if (!single) {
		if (entry_pte_there(entries, x->args.pgoff))
			x->args.flags |= FAULT_PTE_ENTRY;
		err = look_up(x, DECIDE);
		if (err || x->decision.result == FAULT_SIGBUS)
			return err;
	}
	err = entry_grab(entries, x->args.pgoff, single ? 0 : x->decision.order, &x->entry);
	if (err)
		return err;
	err = look_up(x, single ? DECIDE | TAKE : TAKE);
	if (err || x->decision.result == FAULT_SIGBUS) {
		entry_unlock(entries, &x->entry);
		return err;
	}
	entry_insert(entries, &x->entry, stores(x) ? ENTRY_DIRTY : 0);
	choose_addresses(x);
	return 0;
}

int64_t handler_map(int fd, uint64_t start, uint64_t length, int wp)
{
	struct uffdio_continue go = {.range = {start, length}, .mode = wp ? HANDLER_CONTINUE_WP : 0};

	if (!ioctl(fd, UFFDIO_CONTINUE, &go))
		return (int64_t)length;
	return go.mapped > 0 ? go.mapped : -errno;
}

/* One UFFDIO call that makes [start, start + length) go on: how much it did, or -errno. */
static int64_t map_some(const struct fault *x, uint64_t start, uint64_t length)
{
	int err;

	if (x->args.kind == FAULT_MKWRITE) {
		err = handler_set_protection(x->fd, start, length, 0);
		return err ? err : (int64_t)length;
	}
	/* A load is mapped without the right to write, so that the first store is seen. */
	return handler_map(x->fd, start, length, !stores(x));
}

/* The mapping is there and the client goes on: 0, -EEXIST: but for pages that were mapped before, by another
 * mode or for a load, or -errno. The entry alone is locked. */
static int insert(const struct fault *x)
{
	uint64_t at = x->start, end = x->start + x->length;
	int64_t did;
	int tries = 0, found = 0;

	while (at < end) {
		did = map_some(x, at, end - at);
		if (did > 0) {
			at += (uint64_t)did;
		} else if (did == -EEXIST) {
			at += PAGE_SIZE;
			found = did;
		} else if (did == -ENOENT && end - at > PAGE_SIZE) {
			/* They are several areas to the kernel (mlock, mprotect of a part): the page alone. */
			at = address_of(x, x->args.pgoff);
			end = at + PAGE_SIZE;
		} else if (did == -EAGAIN && tries++ < TRIES) {
			sched_yield();	/* the client forks or moves mappings: that ends */
		} else {
			return (int)did;
		}
	}
	return found;
}

/* What came of it, in the thread's rows and for who watches. */
static void count(struct fault *x, enum fault_result result, enum fault_reason reason)
{
	struct latency *row = &x->rows->fault[x->args.kind][x->decision.order != 0][result][reason];

	latency_add_own(row, latency_now() - x->seen.began);
	seen_done(&x->seen, result, x->decision.order ? reason : FAULT_NO_REASON);
}

/* For whoever waits for h->told: `err` is why there was no storage. */
static void tell(struct handler *h, uint64_t id, int err)
{
	uint64_t one = 1;

	pthread_mutex_lock(&h->lock);
	h->trouble = (struct handler_trouble){h->trouble.count + 1, id, err};
	pthread_mutex_unlock(&h->lock);
	(void)!write(h->told, &one, sizeof(one));
}

struct handler_trouble handler_ask_trouble(struct handler *h)
{
	struct handler_trouble found;
	uint64_t times;

	(void)!read(h->told, &times, sizeof(times));
	pthread_mutex_lock(&h->lock);
	found = h->trouble;
	h->trouble.count = 0;
	pthread_mutex_unlock(&h->lock);
	return found;
}

/* A page that was protected and then punched out has left a mark of the protection, over which the kernel
 * sets no other. That goes first, without waking anybody. Should the page be mapped after all, then it can be
 * stored to from here on, and is marked. 0 or -errno. */
static int poison_page(const struct fault *x, uint64_t page)
{
	struct uffdio_writeprotect off = {{page, PAGE_SIZE}, UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
	struct entry_map *entries = &x->piece->file->entries;
	int err = handler_poison(x->fd, page, PAGE_SIZE);
	struct entry e;

	if (err != -EEXIST || entry_grab(entries, x->args.pgoff, 0, &e))
		return err;
	entry_insert(entries, &e, ENTRY_DIRTY);
	err = ioctl(x->fd, UFFDIO_WRITEPROTECT, &off) ? -errno : handler_poison(x->fd, page, PAGE_SIZE);
	entry_unlock(entries, &e);
	return err;
}

/* Storage was not to be had (err), the page is poisoned, or behind the end of the file: there the kernel says
 * it by itself, and asks again where the file has grown since. What is set here would stay. */
static void give_sigbus(struct fault *x, int err)
{
	uint64_t page = address_of(x, x->args.pgoff);

	if (err)
		tell(x->h, x->piece->id, err);
	if ((x->behind && !err) || poison_page(x, page))
		wake(x->fd, page, PAGE_SIZE);
	count(x, FAULT_SIGBUS, x->decision.reason);
}

static void answer(struct fault *x)
{
	int err = -EFAULT, tries;

	/* -EFAULT: somebody cut the file, or punched the page out, meanwhile. */
	for (tries = 0; tries < TRIES && err == -EFAULT; tries++) {
		seen_begin(&x->seen);
		err = prepare(x);
		if (err == -EEXIST || (err == -ENOSPC && x->decision.order)) {
			/* A PTE entry came between decision and grab, or there is room for less than 2 MiB. */
			count(x, FAULT_FALLBACK, err == -ENOSPC ? FAULT_R_TABLE : FAULT_R_PTE_ENTRY);
			x->args.flags |= err == -ENOSPC ? FAULT_TABLE : 0;
			err = -EFAULT;
		} else if ((err && err != -EFAULT) || x->decision.result == FAULT_SIGBUS) {
			give_sigbus(x, err);
			return;
		} else if (!err) {
			seen_mapping(&x->seen, &x->decision, &x->entry, x->length, x->hole);
			err = insert(x);
			x->stale = err == -EFAULT;
			x->there = x->there && !x->stale;
			entry_unlock(&x->piece->file->entries, &x->entry);
			if (!err || err == -EEXIST)
				seen_mapped(&x->seen, &x->entry, x->length, x->hole);
		}
		if (err == -EFAULT)
			seen_retry(&x->seen);
	}
	if (err)
		wake(x->fd, address_of(x, x->args.pgoff), PAGE_SIZE);
	count(x, x->decision.result, x->decision.reason);
}

/* -- threads ------------------------------------------------------------------------------- */

static enum fault_kind kind_of(uint64_t flags)
{
	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		return FAULT_MKWRITE;
	return flags & UFFD_PAGEFAULT_FLAG_WRITE ? FAULT_WRITE : FAULT_READ;
}

/* Answer m. The piece that it was in, counted in, or NULL. */
static struct handler_piece *take_fault(struct handler *h, struct handler_queue *q, const struct uffd_msg *m,
					struct handler_rows *rows)
{
	uint64_t address = m->arg.pagefault.address & ~(PAGE_SIZE - 1), flags = m->arg.pagefault.flags;
	struct fault x = {.h = h, .fd = q->fd, .rows = rows};

	x.seen = (struct fault_seen){.began = latency_now(), .args = &x.args, .open = -1,
				     .ring = trace_of(h->io->trace, TRACE_FAULTS)};
	x.piece = handler_enter_piece(h, q, address);
	if (!x.piece) {
		DAXFS_COUNT(h->stats.stale, 1);
		wake(q->fd, address, PAGE_SIZE);
		return NULL;
	}
	x.there = (flags & (UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WP)) != 0;
	x.args = (struct fault_args){
		.kind = kind_of(flags), .flags = x.piece->pmd ? FAULT_PMD : 0,
		.address = address >> DAXFS_PAGE_SHIFT,
		.pgoff = x.piece->pgoff + ((address - x.piece->start) >> DAXFS_PAGE_SHIFT),
		.vma_start = x.piece->start >> DAXFS_PAGE_SHIFT, .vma_end = x.piece->end >> DAXFS_PAGE_SHIFT};
	x.seen.piece = x.piece;
	answer(&x);
	return x.piece;
}

/* The next message of q, if that is a fault: 1. Never waits: the client may have taken the message by
 * itself, and O_NONBLOCK is the open file's, as much its own as ours. Without it poll(2) says EPOLLERR, at
 * once, until it is set again. So it says of one that was never made ready, for ever: that is left alone. */
static int next_fault(struct handler *h, struct handler_queue *q, uint32_t events, struct uffd_msg *m)
{
	struct iovec room = {m, sizeof(*m)};
	int flags = events & EPOLLERR ? fcntl(q->fd, F_GETFL) : 0;
	ssize_t n;

	if (flags & O_NONBLOCK)
		handler_ignore(h, q);
	else if (events & EPOLLERR)
		fcntl(q->fd, F_SETFL, flags | O_NONBLOCK);
	/* By number, as in work(): the library's are cancellation points, with locked instructions around each. */
	n = syscall(SYS_preadv2, q->fd, &room, 1L, -1L, -1L, (long)RWF_NOWAIT);
	if (n < 0 && errno == EOPNOTSUPP)	/* Linux 6.9 and older */
		n = read(q->fd, m, sizeof(*m));
	if (n != sizeof(*m))
		return 0;
	/* Who asked for events of forks (root alone) makes us the owner of the child's userfaultfd. */
	if (m->event == UFFD_EVENT_FORK)
		handler_close_uffd((int)m->arg.fork.ufd);
	return m->event == UFFD_EVENT_PAGEFAULT;
}

static void *work(void *arg)
{
	struct handler_thread *t = arg;
	struct epoll_event event;
	struct handler_queue *q;
	struct uffd_msg m;

	for (;;) {
		if (syscall(SYS_epoll_pwait, t->epoll, &event, 1L, -1L, NULL, 0L) < 1)
			continue;	/* EINTR */
		if (!event.data.ptr)
			return NULL;	/* handler_stop; the event stays, for the other threads */
		q = handler_enter_queue(t->h, event.data.ptr);
		if (!q)
			continue;
		/* One at a time: the next one is for the next thread. */
		if (!next_fault(t->h, q, event.events, &m)) {
			handler_leave(t->h, q, NULL);
			continue;
		}
		DAXFS_COUNT(t->h->stats.busy, 1);
		handler_leave(t->h, q, take_fault(t->h, q, &m, t->rows));
		DAXFS_COUNT(t->h->stats.busy, -1);
	}
}

/* One more. 0 or -errno. */
static int start_thread(struct handler *h)
{
	struct epoll_event event = {.events = EPOLLIN};
	struct handler_thread *t = &h->thread[h->threads];
	int err;

	*t = (struct handler_thread){.h = h, .epoll = epoll_create1(EPOLL_CLOEXEC)};
	if (t->epoll < 0)
		return -errno;
	t->rows = calloc(1, sizeof(*t->rows));
	if (epoll_ctl(t->epoll, EPOLL_CTL_ADD, h->stop, &event))
		err = -errno;
	else
		err = t->rows ? -pthread_create(&t->id, NULL, work, t) : -ENOMEM;
	if (err)
		close(t->epoll);
	else
		h->threads++;
	return err;
}

int handler_start(struct handler *h, struct daxio *io, unsigned threads)
{
	sigset_t all, old;
	int err = 0;

	*h = (struct handler){.io = io};
	h->stop = eventfd(0, EFD_CLOEXEC);
	h->told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&h->lock, NULL);
	if (h->stop < 0 || h->told < 0)
		err = -errno;
	sigfillset(&all);
	sigdelset(&all, SIGBUS);	/* a page of the region may go (lost.h) */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (!err && h->threads < threads && h->threads < HANDLER_THREADS)
		err = start_thread(h);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		handler_stop(h);
	return err;
}

void handler_stop(struct handler *h)
{
	uint64_t one = 1;
	unsigned i;

	if (h->threads && write(h->stop, &one, sizeof(one)) < 0)
		return;	/* can't be: the counter is 0 */
	for (i = 0; i < h->threads; i++)
		pthread_join(h->thread[i].id, NULL);
	handler_end_all(h);
	for (i = 0; i < h->threads; i++)
		close(h->thread[i].epoll);
	h->threads = 0;
	if (h->stop >= 0)
		close(h->stop);
	if (h->told >= 0)
		close(h->told);
	h->stop = h->told = -1;
	free(h->bad);
	h->bad = NULL;
	pthread_mutex_destroy(&h->lock);
}

void handler_free(struct handler *h)
{
	int i;

	for (i = 0; i < HANDLER_THREADS; i++) {
		free(h->thread[i].rows);
		h->thread[i].rows = NULL;
	}
}
