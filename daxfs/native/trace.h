/* SPDX-License-Identifier: MIT
 *
 * The ring of `daxfs trace`: what the mount's threads say while somebody watches, oldest first, until the
 * trio loop takes it (daxfs/fuse/tracing.py). Who comes when it is full is counted, never waited for.
 *
 * Any thread puts; off, that is one relaxed load. `lock` is innermost: nothing is waited for under it, and it
 * may be taken with any other held. Two threads' events may stand in another order than their clocks say.
 */
#ifndef DAXFS_TRACE_H
#define DAXFS_TRACE_H

#include <pthread.h>
#include <stdint.h>

#define TRACE_BODY 144			/* the reply to CREATE: all but data and listings fits */
#define TRACE_SLOTS 8192

/* Classes of events: a watcher asks for some. */
#define TRACE_REQUESTS 1
#define TRACE_FAULTS 2
#define TRACE_WRITEBACK 4
#define TRACE_FSYNC 8

enum trace_kind { TRACE_REQUEST, TRACE_REPLY, TRACE_LOST, TRACE_NOTIFICATION, TRACE_DAX, TRACE_FSYNC_DONE };

/* One line (daxfs/fuse/trace.py takes it apart). */
struct trace_event {
	uint64_t ns;			/* CLOCK_REALTIME, by trace_put */
	uint32_t kind, opcode;		/* enum trace_kind; TRACE_DAX: enum trace_dax */
	uint64_t unique, nodeid;	/* TRACE_LOST: how many; inode */
	uint32_t uid, gid, pid;
	int32_t error;
	uint32_t len, how;
	uint64_t latency_ns;
	uint8_t body_len, pad[7];
	uint8_t body[TRACE_BODY];	/* the fixed struct and what follows; of a reply its payload; of an fsync ns */
};
_Static_assert(sizeof(struct trace_event) == 72 + TRACE_BODY, "what trace.py takes apart");

/* Named as Linux's tracepoints of fs_dax (daxfs/fuse/trace_dax.py has names and formats). */
enum trace_dax {
	DAX_PTE_FAULT, DAX_PTE_FAULT_DONE, DAX_PMD_FAULT, DAX_PMD_FAULT_DONE, DAX_LOAD_HOLE,
	DAX_PMD_LOAD_HOLE_FALLBACK, DAX_INSERT_MAPPING, DAX_PMD_INSERT_MAPPING, DAX_INSERT_PFN_MKWRITE,
	DAX_WRITEBACK_RANGE, DAX_WRITEBACK_RANGE_DONE, DAX_WRITEBACK_ONE,
	DAX_LOOK			/* ours: a look at page tables (fault/observer.py) */
};

/* Body of a TRACE_DAX event; what it has not is 0. */
struct trace_dax_body {
	uint64_t vm_start, vm_end, address;
	uint64_t pgoff;			/* of a write-back its first page */
	uint64_t max_pgoff;		/* pages of the file; of a range its last page; of a part or look how many */
	uint64_t length;		/* bytes that are mapped */
	uint32_t flags, result;		/* FAULT_FLAG_*, VM_FAULT_* as Linux numbers them */
	uint32_t reason;		/* enum fault_reason */
	uint32_t entry;			/* ENTRY_* */
};
_Static_assert(sizeof(struct trace_dax_body) == 64, "what trace_dax.py takes apart");

struct trace_ring {
	int on;				/* classes that are kept; relaxed */
	pthread_mutex_t lock;
	struct trace_event *slot;	/* TRACE_SLOTS, once somebody has watched */
	uint64_t head, tail, lost;
};

void trace_init(struct trace_ring *r);
void trace_destroy(struct trace_ring *r);
/* Keep events of these classes from now on, or of none (0), from an empty ring. 0, -ENOMEM: none is kept. */
int trace_keep(struct trace_ring *r, int classes);
/* *e is filled in but for its clock. */
void trace_put(struct trace_ring *r, struct trace_event *e);
/* Oldest event into *out: 1; 0: none. Lost ones are told behind all that were kept, as a TRACE_LOST. */
int trace_read(struct trace_ring *r, struct trace_event *out);
/* A TRACE_DAX event. */
void trace_dax(struct trace_ring *r, enum trace_dax what, uint64_t ino, uint32_t pid, uint64_t latency_ns,
	       const struct trace_dax_body *body);

/* r where somebody watches that class, else NULL. r may be NULL. */
static inline struct trace_ring *trace_of(struct trace_ring *r, int class)
{
	return r && __builtin_expect(__atomic_load_n(&r->on, __ATOMIC_RELAXED) & class, 0) ? r : 0;
}

#endif
