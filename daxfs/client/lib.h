/* SPDX-License-Identifier: MIT
 *
 * Inside libdaxfs: what its files share. pieces.c: which addresses are ours; kernel.c: userfaultfd,
 * pagemap, descriptors; records.c and candidates.c: which pages can have been stored to; client.c:
 * observe, forget, fork; writeback.c: write back; dirty.c, libdaxfs.c: the functions of daxfs.h; preload.c:
 * those of libc under `daxfs run`.
 *
 * Locks: `client_lock` (who maps and unmaps; signals wait), then one of the turns of write-back (locks.c),
 * then that of candidates.c.
 * Lookups take none. Nothing here calls malloc(3), or what a preload shim stands in for: system calls
 * are made directly, so that a wrapper of mmap(2) never meets itself.
 */
#ifndef DAXFS_CLIENT_LIB_H
#define DAXFS_CLIENT_LIB_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daxfs/native/observe_abi.h"

#define CLIENT_PAGE ((uintptr_t)4096)
#define CLIENT_HIDDEN __attribute__((visibility("hidden")))
#define CLIENT_API __attribute__((visibility("default")))
#define CLIENT_TURNS 16		/* of write-back, and slots of daxfs_progress */

/* One run of addresses of one mapping. */
struct piece {
	uintptr_t start, end;
	uint64_t offset;	/* in the file, of start */
	uint64_t id;		/* the daemon's; 0: plain */
	const char *why;	/* plain: the reason */
	int error;		/* and its errno */
	int holder;		/* index of the descriptor kept (kernel.c); -1: plain */
	int prot;
	uint8_t flush;		/* DAXFS_FLUSH_* of observe_abi.h, or flushing_medium's */
	uint8_t hidden;		/* there is no PROT_READ: lines can't be written back here */
	uint8_t turn;		/* which lock of write-back: the same for all mappings of a file */
	uint8_t mode;		/* DAXFS_FAULT_* */
	uint8_t pages;		/* fault=user: 4 KiB for each fault */
	int32_t daemon;		/* fault=user: who answers */
	uintptr_t shift;	/* hidden: from its addresses to where it is shown for a write-back; else 0 */
};

/* The part of `p` in [start, end). */
static inline void piece_clip(struct piece *p, uintptr_t start, uintptr_t end)
{
	if (p->start < start) {
		p->offset += start - p->start;
		p->start = start;
	}
	if (p->end > end)
		p->end = end;
}

/* -- pieces.c: lookups without a lock; changes under client_lock -- */
/* The first piece that has a byte of [start, end): 1 and *out, or 0. */
CLIENT_HIDDEN int pieces_next(uintptr_t start, uintptr_t end, struct piece *out);
/* Room for `more` pieces, so that as many puts and splits can't fail: 0 or -ENOMEM. */
CLIENT_HIDDEN int pieces_reserve(size_t more);
/* What overlaps is cut away first. */
CLIENT_HIDDEN void pieces_put(const struct piece *p);
/* Take [start, end) out; pieces that hold it are cut or split. */
CLIENT_HIDDEN void pieces_cut(uintptr_t start, uintptr_t end);
CLIENT_HIDDEN size_t pieces_count(void);

/* -- kernel.c -- */
/* What is asked of the daemon; tests put functions of their own here. 0 or -errno. */
struct client_daemon {
	int (*is_daxfs)(int fd);	/* a regular file of a daxfs mount? One statx(2) that asks no file system */
	int (*about)(int fd, struct daxfs_about *about);	/* -ENOTTY: no file of a daxfs mount */
	int (*observe)(int fd, struct daxfs_observe *request);
	int (*forget)(int fd, const struct daxfs_forget *request);
};
CLIENT_HIDDEN extern struct client_daemon client_daemon;
/* Userfaultfd for a mode and pagemap of this process, made where they are missing: 0 or -errno. */
CLIENT_HIDDEN int kernel_ready(int mode);
/* After fork: what was the parent's is closed. */
CLIENT_HIDDEN void kernel_forked(void);
CLIENT_HIDDEN int kernel_is_owner(void);
CLIENT_HIDDEN int kernel_uffd(int mode);
CLIENT_HIDDEN int kernel_pagemap(void);
CLIENT_HIDDEN int kernel_register(int mode, uintptr_t start, uintptr_t end);
CLIENT_HIDDEN void kernel_unregister(int mode, uintptr_t start, uintptr_t end);
CLIENT_HIDDEN int kernel_protect(int mode, uintptr_t start, uintptr_t end, int on);
/* What the daemon is told of our write-backs (struct daxfs_progress): the memfd, and that one more has begun
 * or ended, in a slot that the caller has for itself. */
CLIENT_HIDDEN int kernel_progress(void);
CLIENT_HIDDEN void kernel_begins(int slot);
CLIENT_HIDDEN void kernel_ends(int slot);
/* 1: what the daemon had taken in that slot is durable, perhaps after waiting up to 0.1 s. 0: not known. */
CLIENT_HIDDEN int kernel_daemon_has_flushed(int slot);
/* Call `gone` from a thread of our own once process `pid` has ended; once for each: 0 or -errno. Nobody
 * answers faults then. After fork the child has to ask anew. */
CLIENT_HIDDEN int kernel_watch(int32_t pid, void (*gone)(int32_t pid));
/* Keep a duplicate of `fd`: its index, counted once; or -errno. */
CLIENT_HIDDEN int kernel_hold(int fd);
CLIENT_HIDDEN int kernel_held(int holder);
CLIENT_HIDDEN void kernel_share(int holder);
CLIENT_HIDDEN void kernel_let_go(int holder);
/* `fd`, just opened (-1: it was not, errno says why), under a high number; and closed. */
CLIENT_HIDDEN int kernel_high(int fd);
CLIENT_HIDDEN void kernel_drop(int *fd);
/* How many descriptors may be taken for something that can be done without, `most` at most. */
CLIENT_HIDDEN int kernel_room(int most);
/* 1: the descriptor is one of ours, not the program's. */
CLIENT_HIDDEN int kernel_owns(int fd);
/* An open that nobody observes: the daemon takes every page of the file for dirty from now on. 0 or
 * -errno. */
CLIENT_HIDDEN int kernel_make_coarse(int fd);
CLIENT_HIDDEN int kernel_threads(void);
CLIENT_HIDDEN int kernel_msync(uintptr_t start, uintptr_t end, int flags);

/* -- records.c, under the lock of candidates.c -- */
/* Hand the addresses of all page faults since the last look to `found`. 1: these are all. 0: some are
 * missing; from now on they are all. -1: nothing is known, nor from now on. */
CLIENT_HIDDEN int records_look(void (*found)(uintptr_t address));
/* Why they are not used; NULL: they are. */
CLIENT_HIDDEN const char *records_why(void);
CLIENT_HIDDEN void records_forked(void);

/* -- candidates.c: by any thread, signals wait -- */
/* A write-back of [start, end) begins, under its turn. 1: only what candidates_next gives can have been
 * stored to. 0: all of it has to be scanned, and with `protects` is. */
CLIENT_HIDDEN int candidates_begin(uintptr_t start, uintptr_t end, int protects);
/* The next run of candidates in [*at, end), which *at moves behind. `take`: it will be scanned and
 * protected. */
CLIENT_HIDDEN int candidates_next(uintptr_t *at, uintptr_t end, int take, uintptr_t *first, uintptr_t *last);
/* Nothing is known of stores to these addresses: they show something else, or a scan has failed. */
CLIENT_HIDDEN void candidates_forget(uintptr_t start, uintptr_t end);
CLIENT_HIDDEN void candidates_before_fork(void);
CLIENT_HIDDEN void candidates_after_fork(int child);
/* Write-backs of large ranges that looked at candidates, and at all. Returns why not, or NULL. */
CLIENT_HIDDEN const char *candidates_counts(uint64_t *by_records, uint64_t *by_scan);

/* -- flushing.c: the table of native/flush.h for each kind -- */
/* The kind that does what `kind` does at the price of a medium (observe_abi.h). */
CLIENT_HIDDEN int flushing_medium(int kind, uint32_t line_ps, uint32_t wire_ps, uint64_t drain_ps);
CLIENT_HIDDEN void flushing_queue(int kind, uintptr_t start, uintptr_t end);
CLIENT_HIDDEN void flushing_drain(void);
CLIENT_HIDDEN void flushing_persist(int kind, uintptr_t start, uintptr_t end);	/* both; not msync's kind */
CLIENT_HIDDEN const char *flushing_name(int kind);
/* Calls and lines of all kinds that write lines back, and drains. */
CLIENT_HIDDEN void flushing_counts(uint64_t *calls, uint64_t *lines, uint64_t *drains);

/* -- locks.c: by any thread; one that has a lock gets it again -- */
/* Until the mask is set back: all but those of faults, since a page may be gone when its lines are written
 * back. A handler may call msync(2), which takes our locks. */
CLIENT_HIDDEN void client_hold_signals(sigset_t *old);
/* That too, and the lock of client.c. */
CLIENT_HIDDEN void client_lock(sigset_t *old);
CLIENT_HIDDEN void client_unlock(const sigset_t *old);
/* Of write-back, while signals are held. All of them: in ascending order. */
CLIENT_HIDDEN void client_turn_take(int turn);
CLIENT_HIDDEN void client_turn_leave(int turn);
CLIENT_HIDDEN void client_turns_take(void);
CLIENT_HIDDEN void client_turns_leave(void);

/* -- writeback.c: by any thread -- */
/* Write back what was stored to the observed parts of [start, end). Signals wait. 0 or -errno. */
CLIENT_HIDDEN int client_sync(uintptr_t start, uintptr_t end);
/* Hand the runs of `p` that were stored to, to `found`; 0, what it returned that was not 0, or -errno. */
CLIENT_HIDDEN int client_dirty(const struct piece *p, int (*found)(void *ctx, uint64_t start, uint64_t end),
			       void *ctx);
/* What changes a part of a mapping splits a huge page at the edges of [start, end), and what the kernel
 * knew of stores to it is lost. So around such a call: 1 if that can happen, then all write-back waits,
 * then the whole of these pages is written back, as far as it is observed still. */
CLIENT_HIDDEN int client_cuts(uintptr_t start, uintptr_t end);
CLIENT_HIDDEN void client_flush_edges(uintptr_t start, uintptr_t end);

/* -- client.c; all of them under client_lock -- */
/* DAXFS_FAULT_* that mappings have which do not say: of the environment (DAXFS_FAULT=user). */
CLIENT_HIDDEN int client_mode(void);
/* How protection stands when observing begins: as it is, all protected (pages of 4 KiB), or none. */
enum { BEGIN_AS_IS, BEGIN_PROTECTED, BEGIN_STORED };
#define BEGIN_HIDDEN 4		/* beside one of these: it can't be loaded from */
/* Observe [start, end) of the open file fd. 0; or -errno and *why: it is plain, and the daemon knows, but
 * for -ENOMEM: then it must not stay. */
CLIENT_HIDDEN int client_attach(uintptr_t start, uintptr_t end, int fd, uint64_t offset, int prot, int begin,
				int mode, const char **why);
/* The daemon forgets the observed parts of [start, end), after a write-back; our pieces stay. `busy`:
 * others may store until the end, so that all of it counts as dirty. */
CLIENT_HIDDEN void client_forget(uintptr_t start, uintptr_t end, int busy);
/* mprotect(2) was made. */
CLIENT_HIDDEN void client_hide(uintptr_t start, uintptr_t end, int hidden);
/* It did not come to what they were forgotten for. */
CLIENT_HIDDEN void client_again(uintptr_t start, uintptr_t end);
/* A copy of part `p` (forgotten) is at [start, end) now. 0 or -errno. */
CLIENT_HIDDEN int client_moved(const struct piece *p, uintptr_t start, uintptr_t end);
/* munmap(2) over pieces; takes the lock by itself. As the call: -1, errno. */
CLIENT_HIDDEN int client_unmap(uintptr_t start, size_t length);

#endif
