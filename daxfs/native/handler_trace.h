/* SPDX-License-Identifier: MIT
 *
 * What of the fault handler is seen: counters and histograms of faults by kind, size, result and reason, and
 * one fault as events of `daxfs trace` (trace.h), in the order in which Linux's fs/dax.c tells of one.
 *
 * Each thread of the handler counts in rows of its own. A fault_seen is its thread's alone.
 */
#ifndef DAXFS_HANDLER_TRACE_H
#define DAXFS_HANDLER_TRACE_H

#include <stdint.h>

#include "daxfs/native/fault.h"
#include "daxfs/native/latency.h"
#include "daxfs/native/trace.h"

struct handler_piece;
struct entry;

/* From the message to the answer: [kind][order 0 or 9][result][reason]. Half a MiB, of which few pages are
 * ever used. */
struct handler_rows {
	struct latency fault[FAULT_KINDS][2][FAULT_RESULTS][FAULT_REASONS];
};

struct fault_seen {
	struct trace_ring *ring;	/* NULL: nobody watches */
	const struct handler_piece *piece;
	const struct fault_args *args;
	uint64_t began;			/* latency_now() */
	int open;			/* the event that its _done has to follow: DAX_PTE_FAULT, DAX_PMD_FAULT; -1 */
	int no_pmd;			/* one was tried already */
};

/* The handler looks for a way to answer: a PMD where one is possible. Nothing where it is looking already. */
void seen_begin(struct fault_seen *s);
/* That is what it is going to do. */
void seen_decided(struct fault_seen *s, const struct fault_decision *d);
/* Before and after `length` bytes are mapped, or made writable; hole: nothing had been there. As Linux has
 * it, dax_insert_mapping comes before, when the client can't be on yet, and what names a result behind. */
void seen_mapping(struct fault_seen *s, const struct fault_decision *d, const struct entry *e,
		  uint64_t length, int hole);
void seen_mapped(struct fault_seen *s, const struct entry *e, uint64_t length, int hole);
/* And it is done: enum fault_result. */
void seen_done(struct fault_seen *s, unsigned result, unsigned reason);
/* The file has changed meanwhile: once more. */
void seen_retry(struct fault_seen *s);

#endif
