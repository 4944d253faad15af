/* SPDX-License-Identifier: MIT
 *
 * The ring of trace.h. Limits: knows nothing of what an event means.
 */
#include "daxfs/native/trace.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void trace_init(struct trace_ring *r)
{
	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->lock, NULL);
}

void trace_destroy(struct trace_ring *r)
{
	free(r->slot);
	r->slot = NULL;
	pthread_mutex_destroy(&r->lock);
}

int trace_keep(struct trace_ring *r, int classes)
{
	int rc;

	pthread_mutex_lock(&r->lock);
	if (classes && !r->slot)
		r->slot = calloc(TRACE_SLOTS, sizeof(*r->slot));
	rc = classes && !r->slot ? -ENOMEM : 0;
	if (!r->on || !classes) {	/* else another one watches on, and loses nothing by that */
		r->tail = r->head;
		r->lost = 0;
	}
	__atomic_store_n(&r->on, rc ? 0 : classes, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&r->lock);
	return rc;
}

void trace_put(struct trace_ring *r, struct trace_event *e)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	e->ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
	pthread_mutex_lock(&r->lock);
	if (!r->slot || r->head - r->tail == TRACE_SLOTS)
		r->lost++;
	else
		r->slot[r->head++ % TRACE_SLOTS] = *e;
	pthread_mutex_unlock(&r->lock);
}

int trace_read(struct trace_ring *r, struct trace_event *out)
{
	int found = 1;

	pthread_mutex_lock(&r->lock);
	if (r->head != r->tail) {
		*out = r->slot[r->tail++ % TRACE_SLOTS];
	} else if (r->lost) {
		memset(out, 0, sizeof(*out));
		out->kind = TRACE_LOST;
		out->unique = r->lost;
		r->lost = 0;
	} else {
		found = 0;
	}
	pthread_mutex_unlock(&r->lock);
	return found;
}

void trace_dax(struct trace_ring *r, enum trace_dax what, uint64_t ino, uint32_t pid, uint64_t latency_ns,
	       const struct trace_dax_body *body)
{
	struct trace_event e;

	memset(&e, 0, offsetof(struct trace_event, body));
	e.kind = TRACE_DAX;
	e.opcode = what;
	e.nodeid = ino;
	e.pid = pid;
	e.how = 3;
	e.latency_ns = latency_ns;
	e.len = e.body_len = sizeof(*body);
	memcpy(e.body, body, sizeof(*body));
	memset(e.body + sizeof(*body), 0, sizeof(e.body) - sizeof(*body));
	trace_put(r, &e);
}
