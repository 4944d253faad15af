/* SPDX-License-Identifier: MIT
 *
 * The native threads between the kernel and everybody who answers (docs/transport.md).
 *
 * A channel is one place where requests come from and replies go to: a /dev/fuse descriptor with its
 * thread (dev.c) or an io_uring queue with its thread (uring.c). A request goes through serve(); what that
 * does not answer becomes a `pending`: relayed to pyfuse3 over the socket pair, or called, which is queued
 * for the trio loop. Its reply goes back to the channel that it came from.
 *
 * No thread here ever takes the GIL. Locks: `lock` guards the table of pending requests and the queue of
 * calls; nothing is waited for under it, and it is never held with a file's lock.
 */
#ifndef DAXFS_TRANSPORT_H
#define DAXFS_TRANSPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE		/* cpu_set_t */
#endif

#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "daxfs/native/serve.h"
#include "daxfs/native/trace.h"

enum transport_kind { TRANSPORT_DEV = 1, TRANSPORT_URING = 2 };
enum transport_how { HOW_SERVED = 0, HOW_RELAYED = 1, HOW_CALLED = 2, HOW_NOT_KNOWN = 3 };

struct transport;
struct channel;

/* A request that somebody else answers. Made by its channel's thread, ended by transport_reply. */
struct pending {
	struct wire_in head;
	struct channel *ch;
	void *place;			/* dev: the buffer of a called request; uring: the ring entry */
	struct serve_msg msg;		/* of a call: points into place */
	uint64_t start;			/* ns, CLOCK_MONOTONIC */
	struct fsync_run fsync;		/* of an FSYNC; its caller's from transport_next_call to transport_reply */
	int how;
	int interrupted;		/* set by INTERRUPT, any thread */
	int cpu;			/* that its thread ran on */
	struct pending *chain;		/* in the table, by unique */
	struct pending *next;		/* in the queue of calls, or in a channel's list of replies */
};

struct channel {
	struct transport *t;
	/* Send the reply of a pending request: any thread. The pieces are used up on return. run: of an fsync,
	 * whose reply ends in here; or NULL. */
	void (*reply)(struct channel *, struct pending *, int error, const struct iovec *iov, int n,
		      struct fsync_run *run);
	struct serve_counts counts;	/* its thread's alone */
	pthread_t thread;
	int started;			/* the thread is there to be joined */
	int finished;			/* it has left its loop */
	int started_error;		/* errno: it could not begin */
};

#define PENDING_BUCKETS 1024

struct transport {
	struct server *server;
	int kind;
	int fuse_fd;			/* the mount's /dev/fuse descriptor */
	int pair_fd;			/* our end of the SEQPACKET pair; pyfuse3 has the other one */
	int event_fd;			/* readable: calls are queued, handles parked, or the transport has ended */
	size_t max_payload;		/* largest payload of a request or reply */
	uint32_t open_flags;		/* or'ed into the replies to OPEN and CREATE (FOPEN_*) */
	int stop;			/* threads shall end */
	int ended;			/* errno of the first end that was not asked for; ENODEV: unmounted */

	pthread_mutex_t lock;
	struct pending *bucket[PENDING_BUCKETS];
	uint64_t npending;
	struct pending *calls, **calls_end;

	/* The trio thread's alone: */
	char *relayed;			/* room for one reply of pyfuse3's */
	struct fsync_counts fsyncs;	/* of those that were called */
	int cpu, row;			/* of the last `row` requests that it answered */
	int home;			/* CPU that it keeps to, -1: it runs where it may (cpus) */
	cpu_set_t cpus;
	struct channel *channel[512];
	int nchannels;
};

int transport_init(struct transport *t, struct server *s, int kind, int fuse_fd, int pair_fd,
		   size_t max_payload);
/* Begin to answer, with `threads` readers (dev). 0, or -errno with every thread ended again. */
int transport_start(struct transport *t, int threads);	/* threads: of dev */
/* End and join all threads; requests that nobody answered are left to the kernel. May be called twice. */
void transport_stop(struct transport *t);
void transport_destroy(struct transport *t);
/* The next call, or NULL (then the event descriptor has been read). */
struct pending *transport_next_call(struct transport *t);
/* Hand pyfuse3's replies on. Called in pyfuse3's own thread, right after it has written one: so no thread has
 * to be woken for it, and the pair can't fill up, which would stop pyfuse3 for ever. The thread runs on any
 * CPU again. */
void transport_pump(struct transport *t);
/* Hand them on, then wait: until pyfuse3 has a request to read from `fd` (1), calls or the end are there (2),
 * `loop`, any other descriptor, is readable (4); the sum of what was seen. At most `ns`, below 10^9: 0.
 * After some requests in a row that came from one CPU the thread keeps to that CPU, until transport_pump. */
int transport_linger(struct transport *t, int fd, int loop, unsigned ns);
/* Put another thread of this process where this one keeps to (`there`), or else where it may run. */
void transport_place(const struct transport *t, int tid, int there);
/* Answer a pending request, which is gone then. */
void transport_reply(struct transport *t, struct pending *p, int error, const struct iovec *iov, int n);
/* There is nothing more to come, for the reason `error`: told to the trio loop. */
void transport_end(struct transport *t, int error);
/* ---- for channels ---- */

uint64_t transport_now(void);
/* What came of a request: SERVE_DONE (r is the reply, to be sent by the channel, then transport_sent()),
 * SERVE_RELAY, SERVE_CALL (it is pending; `place` belongs to it until its reply), else: nothing to do.
 * SERVE_RELAY needs `place` only where the reply does (uring). */
enum serve_verdict transport_handle(struct transport *t, struct channel *ch, void *place,
				    const struct serve_msg *m, struct serve_reply *r, uint64_t start);
/* After the channel has sent what transport_handle left in r. */
void transport_sent(struct transport *t, const struct wire_in *head, struct serve_reply *r, uint64_t start);
int transport_spawn(struct channel *ch, void *(*run)(void *));

int dev_start(struct transport *t, int threads);
void dev_free(struct transport *t, struct channel *ch);
int uring_start(struct transport *t);
void uring_wake(struct transport *t);		/* threads look at `stop` */
void uring_free(struct channel *ch);

#endif
