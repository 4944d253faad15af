/* SPDX-License-Identifier: MIT
 *
 * The fault handler (DESIGN.md section 8, fault=user): threads that read userfaultfd messages of clients,
 * decide (fault.h), take storage, mark the entry (entry.h), and have the kernel insert the mapping.
 *
 * A client is a process. Its pieces are address ranges that show a file; one message queue (userfaultfd) may
 * stand behind many of them. A dirty entry is what may have been stored since the last handler_writeback, and
 * outlives the client. All functions may be called by any thread, without the GIL.
 *
 * Locks, outermost first: one entry for each fault, several in ascending order for a writeback; filemap.lock,
 * exclusive, for look-up, storage and flush; handler.lock (who are the clients, which pieces are there: a few
 * instructions); range table entry. UFFDIO_* calls take the client's mmap_lock, and a thread of the client
 * may hold that while it waits for a request of ours (docs/fault.md, "The client's mmap_lock"). So no
 * filemap.lock is held during one, and no thread that serves requests may wait for an entry.
 */
#ifndef DAXFS_HANDLER_H
#define DAXFS_HANDLER_H

#include <pthread.h>
#include <stdint.h>

#include "daxfs/native/daxio.h"
#include "daxfs/native/entry.h"
#include "daxfs/native/fault.h"
#include "daxfs/native/handler_trace.h"

#define HANDLER_THREADS 64
#define HANDLER_QUEUES 4		/* userfaultfds of a client: each is a descriptor of ours */

struct handler_file {
	struct filemap *f;
	struct entry_map entries;
	int users;			/* pieces, and whoever looks at it */
	struct handler_file *next;
};

struct handler_piece {
	uint64_t start, end;		/* addresses */
	uint64_t pgoff;			/* page of the file at start */
	uint64_t id;			/* of the mapping it belongs to */
	uint32_t pid;			/* of the process, for who watches */
	struct handler_file *file;
	int pmd;			/* 2 MiB at once are possible; else page by page */
	int users;			/* faults that are being answered */
	int gone;			/* in handler.gone: the last user frees it */
	struct handler_piece *next;	/* of its client, sorted by start; or of handler.gone */
};

struct handler_client {
	uint64_t key;			/* the process, as the caller numbers it */
	struct handler_queue *queue;
	struct handler_piece *piece;
	struct handler_client *next;
};

struct handler_stats {
	uint64_t stale;			/* nobody's any more: woken, the kernel asks again */
	uint64_t busy;			/* faults not done with; the client may be on already */
	struct latency writeback_ns, writeback_pages;	/* of those that found something, and did not fail */
};

struct handler_bad {			/* pages [first, last) of f are poisoned */
	const struct filemap *f;
	uint64_t first, last;
};

struct handler_trouble {		/* faults for which there was no storage */
	uint64_t count, id;		/* the mapping of the last one */
	int err;
};

struct handler_thread {
	struct handler *h;
	pthread_t id;
	int epoll;			/* of all queues, and handler.stop */
	struct handler_rows *rows;	/* it alone adds there */
};

struct handler {
	struct daxio *io;
	pthread_mutex_t lock;
	struct handler_client *client;
	struct handler_file *file;
	struct handler_piece *gone;	/* observed no more, but a fault in it is being answered */
	struct handler_bad *bad;	/* of files with FILEMAP_POISONED; others are not looked up */
	size_t bad_count;
	struct handler_trouble trouble;	/* since handler_trouble was asked */
	int stop;			/* eventfd, in each thread's epoll */
	int told;			/* eventfd: there is trouble */
	unsigned threads;
	struct handler_thread thread[HANDLER_THREADS];
	struct handler_stats stats;	/* relaxed atomics */
};

/* 0 or -errno. Until handler_stop, `io` must stay. */
int handler_start(struct handler *h, struct daxio *io, unsigned threads);
/* Messages that are not read yet stay unanswered until the last copy of their userfaultfd is closed. */
void handler_stop(struct handler *h);
/* After that, and the last look at its rows. */
void handler_free(struct handler *h);

/* Piece [start, start + length) of process `key` shows f from page pgoff on, and its faults come by fd, which
 * belongs to the handler from now on, also after a failure. f must stay as long as handler_uses says. pid:
 * for who watches. 0, -EINVAL (no userfaultfd), -EEXIST (overlaps another piece), -EMFILE (HANDLER_QUEUES),
 * -ENOMEM. */
int handler_add(struct handler *h, uint64_t key, int fd, uint64_t id, uint64_t start, uint64_t length,
		uint64_t pgoff, struct filemap *f, int pmd, uint32_t pid);
/* What of [start, start + length) belongs to mapping `id` is observed no more. Faults that are being answered
 * go on. 0, -ENOMEM with nothing changed. */
int handler_remove(struct handler *h, uint64_t key, uint64_t id, uint64_t start, uint64_t length);
/* The process has ended: nothing of it is left. */
void handler_end(struct handler *h, uint64_t key);
/* Before the pages [first, last) go, under the file's exclusive lock: their marks go. Waits for nobody. */
void handler_forget(struct handler *h, const struct filemap *f, uint64_t first, uint64_t last);
/* These pages are poisoned, and no others: SIGBUS for who faults there from now on. 0 or -ENOMEM. */
int handler_spoil(struct handler *h, const struct handler_bad *bad, size_t count);
/* FAULT_POISON, FAULT_POISON_PMD or both, of page pgoff. File lock held. */
uint32_t handler_is_bad(struct handler *h, const struct filemap *f, uint64_t pgoff);
/* Take the pages [first, last) out of every mapping, so that who touches them faults again; their bytes
 * stay. Waits for clients. 0 or -errno. */
int handler_displace(struct handler *h, struct filemap *f, uint64_t first, uint64_t last);
/* The pages [first, last) are not poisoned any more: they go on where they were SIGBUS. The same. */
int handler_restore(struct handler *h, struct filemap *f, uint64_t first, uint64_t last);
/* What trouble there was since this was asked last. */
struct handler_trouble handler_ask_trouble(struct handler *h);
/* 1: a piece shows f, or a fault in one that did is being answered; or it has dirty entries. */
int handler_uses(struct handler *h, const struct filemap *f);

/* Write back what was stored through observed mappings to the pages [first, last): protect them in every
 * client, flush, drain, clean. Waits for clients: not for threads that serve requests. Pages, or -errno: then
 * what is left is still dirty. The file's range has an address. run: of the fsync, or NULL. */
int64_t handler_writeback(struct handler *h, struct filemap *f, uint64_t first, uint64_t last,
			  struct fsync_run *run);
/* For the metadata thread, when the last handle closes: the marks become the tracker's. Waits for nobody. 1:
 * some are in use, and stay where they are; 0; -errno. */
int handler_take(struct handler *h, struct filemap *f);
/* Pages that are dirty, as entries have it. */
uint64_t handler_dirty(struct handler *h, const struct filemap *f);
/* 1: this kernel has what the handler and its clients need (Linux 6.5), on tmpfs; 0: it has not. */
int handler_available(void);
/* Make an address raise SIGBUS from now on (6.6 and later), wherever it is not mapped. 0 or -errno. */
int handler_poison(int fd, uint64_t start, uint64_t length);

#endif
