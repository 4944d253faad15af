/* SPDX-License-Identifier: MIT
 *
 * One fault as the events that Linux's fs/dax.c has for it (handler_trace.h). Limits: flags are what
 * userfaultfd tells, WRITE and MKWRITE.
 */
#include "daxfs/native/handler_trace.h"

#include "daxfs/native/handler.h"

#define NOTHING_OPEN (-1)
#define PAGES(bytes) (((bytes) >> DAXFS_PAGE_SHIFT) + (((bytes) & ((1u << DAXFS_PAGE_SHIFT) - 1)) != 0))

/* As Linux numbers them (FAULT_FLAG_*, VM_FAULT_*). */
#define FLAG_WRITE 1u
#define FLAG_MKWRITE 2u
#define VM_MAJOR 4u
#define VM_RETRY 0x400u
static const uint32_t vm_fault[] = {[FAULT_NOPAGE] = 0x100, [FAULT_LOCKED] = 0x200, [FAULT_FALLBACK] = 0x800,
				    [FAULT_SIGBUS] = 2, [FAULT_OOM] = 1, [FAULT_NEEDDSYNC] = 0x2000};

static uint32_t vm_result(unsigned result)
{
	return vm_fault[result & ~(unsigned)FAULT_MAJOR] | (result & FAULT_MAJOR ? VM_MAJOR : 0);
}

/* The fields that all events of a fault have. */
static struct trace_dax_body body_of(const struct fault_seen *s)
{
	const struct handler_piece *p = s->piece;
	struct trace_dax_body body = {.vm_start = p->start, .vm_end = p->end, .pgoff = s->args->pgoff,
				      .address = s->args->address << DAXFS_PAGE_SHIFT};
	uint64_t size = __atomic_load_n(&p->file->f->size, __ATOMIC_RELAXED);

	body.max_pgoff = PAGES(size);
	if (s->args->kind == FAULT_WRITE)
		body.flags = FLAG_WRITE;
	else if (s->args->kind == FAULT_MKWRITE)
		body.flags = FLAG_WRITE | FLAG_MKWRITE;
	return body;
}

static void put(const struct fault_seen *s, enum trace_dax what, const struct trace_dax_body *body,
		uint64_t ns)
{
	trace_dax(s->ring, what, s->piece->file->f->ino, s->piece->pid, ns, body);
}

static void open_event(struct fault_seen *s, enum trace_dax what)
{
	struct trace_dax_body body = body_of(s);

	s->open = (int)what;
	put(s, what, &body, 0);
}

static void close_event(struct fault_seen *s, uint32_t result, unsigned reason)
{
	enum trace_dax what = s->open == DAX_PMD_FAULT ? DAX_PMD_FAULT_DONE : DAX_PTE_FAULT_DONE;
	struct trace_dax_body body = body_of(s);

	body.result = result;
	body.reason = reason;
	put(s, what, &body, latency_now() - s->began);
	s->no_pmd = s->open == DAX_PMD_FAULT && result == vm_fault[FAULT_FALLBACK];
	s->open = NOTHING_OPEN;
}

void seen_begin(struct fault_seen *s)
{
	int pmd = s->args->flags & FAULT_PMD && s->args->kind != FAULT_MKWRITE && !s->no_pmd;

	if (s->ring && s->open == NOTHING_OPEN)
		open_event(s, pmd ? DAX_PMD_FAULT : DAX_PTE_FAULT);
}

void seen_decided(struct fault_seen *s, const struct fault_decision *d)
{
	struct trace_dax_body body;

	if (!s->ring)
		return;
	if (d->order && s->open == DAX_PTE_FAULT) {	/* what was in its way has gone */
		close_event(s, VM_RETRY, FAULT_NO_REASON);
		open_event(s, DAX_PMD_FAULT);
	}
	/* Behind the end of the file there is no reason, and Linux does not try a PTE either. */
	if (d->order || d->reason == FAULT_NO_REASON || s->open != DAX_PMD_FAULT)
		return;
	if (d->reason == FAULT_R_NO_ZERO_PAGE) {
		body = body_of(s);
		put(s, DAX_PMD_LOAD_HOLE_FALLBACK, &body, 0);
	}
	close_event(s, vm_fault[FAULT_FALLBACK], d->reason);
	open_event(s, DAX_PTE_FAULT);
}

static void put_mapping(const struct fault_seen *s, enum trace_dax what, const struct entry *e,
			uint64_t length, uint32_t result)
{
	struct trace_dax_body body = body_of(s);

	body.length = length;
	body.entry = e->state;
	body.result = result;
	put(s, what, &body, 0);
}

static int loads_hole(const struct fault_seen *s, int hole)
{
	return s->args->kind == FAULT_READ && hole;
}

void seen_mapping(struct fault_seen *s, const struct fault_decision *d, const struct entry *e,
		  uint64_t length, int hole)
{
	if (s->ring && s->args->kind != FAULT_MKWRITE && !loads_hole(s, hole))
		put_mapping(s, d->order ? DAX_PMD_INSERT_MAPPING : DAX_INSERT_MAPPING, e, length, 0);
}

void seen_mapped(struct fault_seen *s, const struct entry *e, uint64_t length, int hole)
{
	if (s->ring && s->args->kind == FAULT_MKWRITE)
		put_mapping(s, DAX_INSERT_PFN_MKWRITE, e, length, vm_fault[FAULT_NOPAGE]);
	else if (s->ring && loads_hole(s, hole))
		put_mapping(s, DAX_LOAD_HOLE, e, length, vm_fault[FAULT_NOPAGE]);
}

void seen_done(struct fault_seen *s, unsigned result, unsigned reason)
{
	if (s->ring && s->open != NOTHING_OPEN)
		close_event(s, vm_result(result), reason);
}

void seen_retry(struct fault_seen *s)
{
	if (s->ring && s->open != NOTHING_OPEN)
		close_event(s, VM_RETRY, FAULT_NO_REASON);
}
