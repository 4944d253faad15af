/* SPDX-License-Identifier: MIT
 *
 * What a client does with its observed mappings: observe and forget them, and begin anew after fork. How they
 * are written back is in writeback.c.
 *
 * Threads: everything under client_lock. While a lock is held signals wait (client_hold_signals).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daxfs/client/lib.h"
#include "daxfs/native/pagemap.h"

static sigset_t mask_at_fork;
static int fork_known;

/* -- the daemon -- */

static int observe(struct piece *p, int fd)
{
	struct daxfs_observe request = {
		.version = DAXFS_OBSERVE_VERSION, .mode = p->mode, .uffd = kernel_uffd(p->mode),
		.prot = p->prot, .address = p->start, .length = p->end - p->start, .offset = p->offset,
		.flags = DAXFS_OBSERVE_PROGRESS | (p->pages ? DAXFS_OBSERVE_PTE : 0),
		.progress = kernel_progress(), .slot = p->turn,
	};
	int r = client_daemon.observe(fd, &request);

	p->id = r ? 0 : request.id;
	return r;
}

static void forget(const struct piece *p, int dirty)
{
	struct daxfs_forget request = {
		.id = p->id, .address = p->start, .length = p->end - p->start, .dirty = dirty,
	};

	/* An error means that the daemon, or its mapping, is gone already. */
	client_daemon.forget(kernel_held(p->holder), &request);
}

static int refuse(const char **why, const char *text, int error)
{
	*why = text;
	return error;
}

/* What the daemon says of the file: 0 and what a piece takes from it, or why it can't be observed. */
static int ask(int fd, struct piece *p, const char **why)
{
	struct daxfs_about about;
	int r = client_daemon.about(fd, &about);

	if (r == -ENOTTY)
		return refuse(why, "not a file of a daxfs mount that can be observed", r);
	if (r)
		return refuse(why, "the daemon does not answer", r);
	if (!about.direct)
		return refuse(why, "the file is not mapped directly (DAX flag, pool directory; see daxfs doctor)",
			      -EOPNOTSUPP);
	if (about.version != DAXFS_OBSERVE_VERSION)
		return refuse(why, "the daemon is of another version", -EOPNOTSUPP);
	if (about.syncs)
		return refuse(why, "not needed, nor offered: the file system below the mount tracks stores by itself; "
			      "msync(2) and fsync(2) write back those alone", -EOPNOTSUPP);
	if (!(about.modes & p->mode))
		return refuse(why, p->mode == DAXFS_FAULT_USER ? "the mount does not offer fault=user"
			      : "the mount does not offer fault=kernel", -EOPNOTSUPP);
	if (p->mode == DAXFS_FAULT_USER && !about.daemon)
		return refuse(why, "fault=user: the daemon is not in sight (another pid name space)", -ESRCH);
	p->daemon = about.daemon;
	p->flush = about.flush <= DAXFS_FLUSH_MSYNC ? about.flush : DAXFS_FLUSH_MSYNC;
	p->flush = (uint8_t)flushing_medium(p->flush, about.line_ps, about.wire_ps, about.drain_ps);
	p->turn = about.ino % CLIENT_TURNS;
	return 0;
}

/* The daemon has ended: whoever waits for its answer goes on, and from now on the kernel fills. Takes no
 * lock: who holds one may be waiting, too. */
static void daemon_gone(int32_t pid)
{
	struct piece p;
	uintptr_t at = 0;

	for (; pieces_next(at, UINTPTR_MAX, &p); at = p.end)
		if (p.id && p.mode == DAXFS_FAULT_USER && p.daemon == pid)
			kernel_unregister(p.mode, p.start, p.end);
}

static int register_user(struct piece *p, const char **why)
{
	int r = kernel_ready(p->mode);

	if (r == -EPERM)
		return refuse(why, "fault=user needs root or CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1", r);
	if (r)
		return refuse(why, "this kernel, or a limit, gives no userfaultfd for faults of shared memory", r);
	r = kernel_watch(p->daemon, daemon_gone);
	if (r)
		return refuse(why, "the daemon can't be watched", r);
	r = kernel_register(p->mode, p->start, p->end);
	if (r)
		return refuse(why, "userfaultfd does not take the mapping", r);
	return 0;
}

static int register_piece(struct piece *p, int begin, const char **why)
{
	int r;

	if (p->mode == DAXFS_FAULT_USER) {
		p->pages = begin == BEGIN_PROTECTED;
		return register_user(p, why);
	}
	r = kernel_ready(p->mode);
	if (r)
		return refuse(why, "this kernel, or a limit, gives no userfaultfd with asynchronous protection", r);
	r = kernel_register(p->mode, p->start, p->end);
	if (r)
		return refuse(why, "userfaultfd does not take the mapping", r);
	if (begin == BEGIN_PROTECTED)
		syscall(SYS_madvise, p->start, p->end - p->start, MADV_NOHUGEPAGE);
	if (begin != BEGIN_AS_IS && (r = kernel_protect(p->mode, p->start, p->end, begin == BEGIN_PROTECTED)))
		kernel_unregister(p->mode, p->start, p->end);
	return r ? refuse(why, "the mapping can't be protected", r) : 0;
}

static void know_fork(void);

int client_mode(void)
{
	const char *wanted = getenv("DAXFS_FAULT");

	return wanted && !strcmp(wanted, "user") ? DAXFS_FAULT_USER : DAXFS_FAULT_KERNEL;
}

int client_attach(uintptr_t start, uintptr_t end, int fd, uint64_t offset, int prot, int begin, int mode,
		  const char **why)
{
	struct piece p = {.start = start, .end = end, .offset = offset, .prot = prot, .holder = -1,
			  .mode = mode, .hidden = begin & BEGIN_HIDDEN}, stale;
	int r = ask(fd, &p, why);

	begin &= ~BEGIN_HIDDEN;
	if (r)
		return r;
	if (pieces_reserve(4))
		return refuse(why, "no memory", -ENOMEM);
	if (pieces_next(start, end, &stale)) {	/* unmapped behind our back; nobody knows what was stored */
		for (stale.end = start; stale.end < end && pieces_next(stale.end, end, &stale);) {
			piece_clip(&stale, start, end);
			if (stale.id)
				forget(&stale, 1);
		}
		pieces_cut(start, end);
	}
	r = register_piece(&p, begin, why);
	if (!r && (p.holder = kernel_hold(fd)) < 0) {
		r = refuse(why, "no descriptor is left to keep the file open", p.holder);
		kernel_unregister(mode, start, end);
	}
	if (!r)
		know_fork();
	if (!r && (r = observe(&p, fd))) {
		refuse(why, "the daemon refuses to observe the mapping", r);
		kernel_let_go(p.holder);
		kernel_unregister(mode, start, end);
	}
	if (!r)
		pieces_put(&p);
	/* What is mapped already, after a move or mprotect(2), the daemon has not marked: written back now. */
	if (!r && mode == DAXFS_FAULT_USER)
		client_sync(start, end);
	/* Something was observed: perhaps of this open file. */
	if (r && fork_known && kernel_make_coarse(fd))
		return refuse(why, "the mapping is not observed, and the daemon can't be told", -ENOMEM);
	return r;
}

void client_forget(uintptr_t start, uintptr_t end, int busy)
{
	struct piece p;

	for (; start < end && pieces_next(start, end, &p); start = p.end) {
		piece_clip(&p, start, end);
		if (p.id)
			forget(&p, client_sync(p.start, p.end) || busy);
	}
}

void client_hide(uintptr_t start, uintptr_t end, int hidden)
{
	struct piece p;

	for (; start < end && pieces_next(start, end, &p); start = p.end) {
		piece_clip(&p, start, end);
		if (!p.id || p.hidden == hidden || pieces_reserve(4))
			continue;
		p.hidden = hidden;
		kernel_share(p.holder);
		pieces_put(&p);
	}
}

void client_again(uintptr_t start, uintptr_t end)
{
	struct piece p;

	for (; start < end && pieces_next(start, end, &p); start = p.end) {
		piece_clip(&p, start, end);
		if (!p.id)
			continue;
		if (observe(&p, kernel_held(p.holder)))
			kernel_make_coarse(kernel_held(p.holder));
		if (!p.id || pieces_reserve(4))
			continue;
		kernel_share(p.holder);
		pieces_put(&p);
	}
}

int client_moved(const struct piece *old, uintptr_t start, uintptr_t end)
{
	const char *why;

	/* Kernels before 6.13 take the protection along without who registered it: a store would not be seen. */
	return client_attach(start, end, kernel_held(old->holder), old->offset, old->prot,
			     (old->pages ? BEGIN_PROTECTED : BEGIN_STORED) | (old->hidden ? BEGIN_HIDDEN : 0),
			     old->mode, &why);
}

int client_unmap(uintptr_t start, size_t length)
{
	uintptr_t end = start + ((length + CLIENT_PAGE - 1) & ~(CLIENT_PAGE - 1));
	sigset_t old;
	int r, cuts;

	client_lock(&old);
	r = pieces_reserve(4);
	if (!r) {
		client_forget(start, end, 0);
		if ((cuts = client_cuts(start, end)))
			client_turns_take();
		r = syscall(SYS_munmap, start, length) ? -errno : 0;
		if (r)
			client_again(start, end);
		else
			pieces_cut(start, end);
		if (cuts) {
			client_flush_edges(start, end);
			client_turns_leave();
		}
	}
	client_unlock(&old);
	errno = -r;
	return r ? -1 : 0;
}

/* -- fork and the end -- */

static void before_fork(void)
{
	sigset_t old;

	client_lock(&old);
	client_turns_take();
	candidates_before_fork();
	mask_at_fork = old;
}

static void leave_fork(void)
{
	sigset_t old = mask_at_fork;

	client_turns_leave();
	client_unlock(&old);
}

static void after_fork(void)
{
	candidates_after_fork(0);
	leave_fork();
}

/*
 * The kernel gives a child its parent's mappings without the registration, and page tables of them only
 * as it touches them. So nothing is missed: what it stores from here on is found as any first store is.
 */
static void in_child(void)
{
	struct piece p;
	uintptr_t at = 0;
	int error = errno;

	candidates_after_fork(1);
	kernel_forked();
	while (pieces_next(at, UINTPTR_MAX, &p)) {
		at = p.end;
		if (!p.id)
			continue;
		if (!kernel_ready(p.mode)
		    && (p.mode == DAXFS_FAULT_KERNEL || !kernel_watch(p.daemon, daemon_gone))
		    && !kernel_register(p.mode, p.start, p.end)
		    && !observe(&p, kernel_held(p.holder)) && !pieces_reserve(4)) {
			kernel_share(p.holder);
			pieces_put(&p);
			continue;
		}
		/* With fault=user nobody would answer. It fails where it was not registered. */
		kernel_unregister(p.mode, p.start, p.end);
		kernel_make_coarse(kernel_held(p.holder));
		if (!pieces_reserve(4))
			pieces_cut(p.start, p.end);
	}
	errno = error;
	leave_fork();
}

static void know_fork(void)
{
	if (!fork_known)
		fork_known = !pthread_atfork(before_fork, after_fork, in_child);
}

/* exit(3): nobody stores any more, so the daemon need not take every page for dirty. */
__attribute__((destructor))
static void at_exit(void)
{
	struct piece p;
	sigset_t old;

	if (!pieces_next(0, UINTPTR_MAX, &p) || !kernel_is_owner())
		return;
	client_lock(&old);
	client_forget(0, UINTPTR_MAX, kernel_threads() > 1);
	client_unlock(&old);
}
