/* SPDX-License-Identifier: MIT
 *
 * OPEN and RELEASE without the metadata thread (serve_park.h).
 *
 * Why nobody can take a handle that he must not have: what may be parked is decided under the file's lock,
 * where the metadata thread changes link count and FILEMAP_PARKS under the exclusive one. So whoever reaps
 * after such a change has seen all that was parked before it, and nothing is parked after it.
 */
#define _GNU_SOURCE
#include "daxfs/native/serve_park.h"

#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daxfs/native/serve_file.h"
#include "daxfs/native/tracker.h"

#define NSEC_PER_SEC INT64_C(1000000000)
/* What open(2) does with these is done when OPEN arrives, or before it. */
#define ONCE ((uint32_t)(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC))

static int64_t coarse_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

/* Under server.lock. Seen by requests that name the handle, without it. */
static void set_parked(struct serve_handle *h, int parked)
{
	__atomic_store_n(&h->parked, parked, __ATOMIC_RELEASE);
}

/* Take number i out of the list. Under server.lock. */
static struct serve_handle *take(struct server *s, int i)
{
	struct serve_handle *h = s->parked[i];

	memmove(&s->parked[i], &s->parked[i + 1], (size_t)(s->nparked - i - 1) * sizeof(s->parked[0]));
	__atomic_store_n(&s->nparked, s->nparked - 1, __ATOMIC_RELAXED);
	return h;
}

static int allowed(const struct server *s)
{
	return __atomic_load_n(&s->limits.parks, __ATOMIC_RELAXED)
		&& !__atomic_load_n(&s->limits.nothing, __ATOMIC_RELAXED);
}

/* -- RELEASE ---------------------------------------------------------------------------- */

/* Is there nothing that the last close would have to do at once? Lock held shared, region entered. */
static int may_wait(const struct filemap *f)
{
	if (!(__atomic_load_n(&f->state, __ATOMIC_RELAXED) & FILEMAP_PARKS))
		return 0;
	if (!f->own || __atomic_load_n(&f->own->torn, __ATOMIC_SEQ_CST) || tracker_any(f))
		return 0;
	/* Only a record changes it, under the exclusive lock: an ordinary load. */
	return *(const uint32_t *)(f->inode + INODE_NLINK_AT) > 0;
}

/* 1: h is parked. *tell: and somebody has to know. */
static int park(struct server *s, struct serve_handle *h, int *tell)
{
	int i, same = 0, parks;

	pthread_mutex_lock(&s->lock);
	for (i = 0; i < s->nparked; i++)
		same += s->parked[i]->ino == h->ino;
	/* A second RELEASE of the same handle, which no kernel sends, finds that it is parked. */
	parks = allowed(s) && same < SERVE_PARKED_EACH && s->nparked < SERVE_PARKED_MOST
		&& h->parked == SERVE_USED;
	*tell = parks && !s->armed;
	if (parks) {
		h->parked_at = coarse_now();
		set_parked(h, SERVE_PARKED);
		s->parked[s->nparked] = h;
		__atomic_store_n(&s->nparked, s->nparked + 1, __ATOMIC_RELAXED);
		s->armed = 1;
	}
	pthread_mutex_unlock(&s->lock);
	return parks;
}

static void tell(const struct server *s)
{
	uint64_t one = 1;

	/* EAGAIN alone can happen: the counter is full, so the reader is told already. */
	if (s->park_event >= 0 && write(s->park_event, &one, sizeof(one)) < 0)
		return;
}

enum serve_verdict serve_release(struct server *s, struct serve_handle *h)
{
	struct filemap *f = h->f;
	int parks, first = 0;

	if (!h->backing || !__atomic_load_n(&h->open_flags, __ATOMIC_RELAXED) || !f || !f->inode || !allowed(s))
		return SERVE_RELAY;
	file_lock_take(&f->lock, 0);
	parks = !range_enter(s->io->table);
	if (parks) {
		parks = may_wait(f);
		/* With a page of the region gone the link count may be zeros that nobody wrote, or not. */
		parks = !range_leave(s->io->table, 0) && parks && park(s, h, &first);
	}
	file_lock_give(&f->lock);
	if (first)
		tell(s);
	return parks ? SERVE_DONE : SERVE_RELAY;
}

/* -- OPEN ------------------------------------------------------------------------------- */

/* Would an OPEN with `flags` by the caller of `in` have made just this handle? What the opener may do is
 * asked later, of uid 0 nothing, and of others by gid and pid (fuse/handler.py group_check). */
static int is_same(const struct serve_handle *h, const struct wire_in *in, uint32_t flags)
{
	const struct serve_opener *o = &h->opener;

	if (h->ino != in->nodeid || o->flags == SERVE_NO_OPENER || (o->flags & ~ONCE) != flags)
		return 0;
	return o->uid == in->uid && (!in->uid || (o->gid == in->gid && o->pid == in->pid));
}

enum serve_verdict serve_open(struct server *s, const struct serve_msg *m, struct serve_reply *r)
{
	struct wire_open_out out = {0, 0, 0};
	struct wire_open in;
	struct serve_handle *h;
	int i;

	memcpy(&in, m->arg, sizeof(in));
	if (!__atomic_load_n(&s->nparked, __ATOMIC_RELAXED) || in.flags & ONCE || in.open_flags)
		return SERVE_RELAY;
	pthread_mutex_lock(&s->lock);
	for (i = allowed(s) ? s->nparked - 1 : -1; i >= 0; i--) {	/* the last one's lines are warm */
		if (!is_same(s->parked[i], m->head, in.flags))
			continue;
		h = take(s, i);
		set_parked(h, SERVE_USED);
		__atomic_fetch_add(&h->taken, 1, __ATOMIC_RELAXED);
		__atomic_store_n(&h->opener.pid, m->head->pid, __ATOMIC_RELAXED);
		h->opener.gid = m->head->gid;
		out = (struct wire_open_out){h->fh, h->open_flags, h->backing};
		break;
	}
	pthread_mutex_unlock(&s->lock);
	return out.fh ? serve_answer(r, &out, sizeof(out)) : SERVE_RELAY;
}

/* -- the metadata thread ---------------------------------------------------------------- */

int server_reap(struct server *s, uint64_t ino, int64_t age, uint64_t *fh)
{
	int64_t latest = coarse_now() - age;
	struct serve_handle *h;
	int i = 0, n = 0;

	pthread_mutex_lock(&s->lock);
	while (i < s->nparked) {
		h = s->parked[i];
		if ((ino && h->ino != ino) || h->parked_at > latest) {
			i++;
			continue;
		}
		take(s, i);
		set_parked(h, SERVE_REAPED);
		fh[n++] = h->fh;
	}
	pthread_mutex_unlock(&s->lock);
	return n;
}

int server_parked(struct server *s, uint64_t *ino)
{
	int n;

	pthread_mutex_lock(&s->lock);
	for (n = 0; n < s->nparked; n++)
		ino[n] = s->parked[n]->ino;
	pthread_mutex_unlock(&s->lock);
	return n;
}

int server_disarm(struct server *s)
{
	int none;

	pthread_mutex_lock(&s->lock);
	none = !s->nparked;
	if (none)
		s->armed = 0;
	pthread_mutex_unlock(&s->lock);
	return none;
}

void server_unpark(struct server *s, struct serve_handle *h, uint64_t fh)
{
	int i;

	pthread_mutex_lock(&s->lock);
	for (i = 0; i < s->nparked; i++) {
		if (s->parked[i] == h && h->fh == fh) {
			set_parked(take(s, i), SERVE_REAPED);
			break;
		}
	}
	pthread_mutex_unlock(&s->lock);
}
