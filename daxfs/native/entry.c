/* SPDX-License-Identifier: MIT
 *
 * The entries of entry.h. Limits: pages below DAXFS_MAX_PGOFF; a caller that unlocks what it does not hold
 * is a bug that only assertions see.
 */
#define _GNU_SOURCE
#include "daxfs/native/entry.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GROUP_SHIFT 18			/* pages of a group, as a power of two */
#define SLOT_MASK (ENTRY_GROUP_SLOTS - 1)
#define RELAX 1024			/* entries that are dropped before others get `lock` */

struct entry_waiter {
	struct entry_waiter *next;
	uint64_t pgoff;			/* of the entry that it waits for */
	uint32_t order;
	uint32_t awake;			/* futex: it was told to look */
};

struct place {				/* where a page stands; good while `lock` is held */
	size_t at;			/* index of its group, or where that would have to be */
	struct entry_group *g;		/* NULL: none */
	struct entry_pages *pages;	/* of its slot, NULL: none */
	unsigned slot;
	uint8_t *state;			/* of the entry that holds the page, NULL: none */
};

void entry_map_init(struct entry_map *m, entry_unmap *unmap, void *ctx)
{
	memset(m, 0, sizeof(*m));
	pthread_mutex_init(&m->lock, NULL);
	m->end = &m->first;
	m->unmap = unmap;
	m->ctx = ctx;
}

void entry_map_destroy(struct entry_map *m)
{
	assert(!m->first);
	for (size_t i = 0; i < m->n; i++) {
		for (unsigned slot = 0; slot < ENTRY_GROUP_SLOTS; slot++)
			free(m->group[i]->pages[slot]);
		free(m->group[i]);
	}
	free(m->group);
	pthread_mutex_destroy(&m->lock);
}

/* -- finding ----------------------------------------------------------------------------------- */

/* Index of the first group whose number is not below `number`. */
static size_t group_index(const struct entry_map *m, uint64_t number)
{
	size_t lo = 0, hi = m->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->group[mid]->number < number)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static void find(const struct entry_map *m, uint64_t pgoff, struct place *p)
{
	uint64_t number = pgoff >> GROUP_SHIFT;

	memset(p, 0, sizeof(*p));
	p->at = group_index(m, number);
	p->slot = (unsigned)(pgoff >> FAULT_PMD_ORDER) & SLOT_MASK;
	if (p->at == m->n || m->group[p->at]->number != number)
		return;
	p->g = m->group[p->at];
	p->pages = p->g->pages[p->slot];
	if (p->g->pmd[p->slot])
		p->state = &p->g->pmd[p->slot];
	else if (p->pages && p->pages->state[pgoff & FAULT_COLOUR])
		p->state = &p->pages->state[pgoff & FAULT_COLOUR];
}

/* The entry at p as its holder knows it. */
static struct entry entry_at(const struct place *p, uint64_t pgoff)
{
	struct entry e = {pgoff, 0, *p->state & ~ENTRY_THERE};

	if (e.state & ENTRY_PMD) {
		e.pgoff &= ~FAULT_COLOUR;
		e.order = FAULT_PMD_ORDER;
	}
	return e;
}

/* The first page of `pages` from `page` on whose entry has the bits of `want`, or FAULT_PMD_PAGES. */
static unsigned next_page(const struct entry_pages *pages, unsigned page, unsigned want)
{
	while (page < FAULT_PMD_PAGES && (pages->state[page] & want) != want)
		page++;
	return page;
}

/* The first entry with a page in [first, last] and the bits of `want`; 1, or 0: none. */
static int next_entry(const struct entry_map *m, uint64_t first, uint64_t last, unsigned want,
		      struct entry *out)
{
	struct place p;
	uint64_t at = first, rest;

	for (find(m, at, &p); p.at < m->n && at <= last; find(m, at, &p)) {
		if (!p.g) {		/* on to the next group that there is */
			at = m->group[p.at]->number << GROUP_SHIFT;
			continue;
		}
		rest = p.g->dirty[p.slot / 64] >> (p.slot % 64);
		if (want & ENTRY_DIRTY && !rest) {
			at = ((at >> FAULT_PMD_ORDER | 63) + 1) << FAULT_PMD_ORDER;
			continue;
		}
		if (p.state && (*p.state & want) == want)
			break;
		if (p.pages && (!(want & ENTRY_DIRTY) || rest & 1)) {
			unsigned page = next_page(p.pages, at & FAULT_COLOUR, want);

			at = (at & ~FAULT_COLOUR) + page;
			if (page < FAULT_PMD_PAGES)
				p.state = &p.pages->state[page];
			if (page < FAULT_PMD_PAGES)
				break;
			continue;
		}
		at = (at | FAULT_COLOUR) + 1;
	}
	if (p.at == m->n || at > last)
		return 0;
	*out = entry_at(&p, at);
	return 1;
}

/* -- changing ---------------------------------------------------------------------------------- */

static int group_make(struct entry_map *m, struct place *p, uint64_t number)
{
	struct entry_group **room, *g;

	if (m->n == m->cap) {
		room = realloc(m->group, (m->cap ? 2 * m->cap : 4) * sizeof(*room));
		if (!room)
			return -ENOMEM;
		m->group = room;
		m->cap = m->cap ? 2 * m->cap : 4;
	}
	g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	g->number = number;
	memmove(m->group + p->at + 1, m->group + p->at, (m->n - p->at) * sizeof(*m->group));
	m->group[p->at] = p->g = g;
	m->n++;
	return 0;
}

static void group_free_if_empty(struct entry_map *m, const struct place *p)
{
	if (p->g->used)
		return;
	free(p->g);
	m->n--;
	memmove(m->group + p->at, m->group + p->at + 1, (m->n - p->at) * sizeof(*m->group));
	if (m->n)
		return;
	free(m->group);
	m->group = NULL;
	m->cap = 0;
}

/* An EMPTY, locked entry where there is none; 0 or -ENOMEM with nothing changed. */
static int make(struct entry_map *m, struct place *p, uint64_t pgoff, unsigned order)
{
	if (!p->g && group_make(m, p, pgoff >> GROUP_SHIFT))
		return -ENOMEM;
	if (order) {
		p->state = &p->g->pmd[p->slot];
		p->g->used++;
	} else {
		if (!p->pages) {
			p->pages = p->g->pages[p->slot] = calloc(1, sizeof(*p->pages));
			if (!p->pages) {
				group_free_if_empty(m, p);
				return -ENOMEM;
			}
			p->g->used++;
		}
		p->state = &p->pages->state[pgoff & FAULT_COLOUR];
		p->pages->used++;
	}
	*p->state = ENTRY_THERE | ENTRY_LOCKED | ENTRY_EMPTY | (order ? ENTRY_PMD : 0);
	m->count++;
	return 0;
}

static void mark(struct entry_map *m, const struct place *p)
{
	if (*p->state & ENTRY_DIRTY)
		return;
	*p->state |= ENTRY_DIRTY;
	m->dirty++;
	if (p->pages)
		p->pages->dirty++;
	p->g->dirty[p->slot / 64] |= UINT64_C(1) << (p->slot % 64);
}

static void unmark(struct entry_map *m, const struct place *p)
{
	if (!(*p->state & ENTRY_DIRTY))
		return;
	*p->state &= ~ENTRY_DIRTY;
	m->dirty--;
	if (!p->pages || !--p->pages->dirty)
		p->g->dirty[p->slot / 64] &= ~(UINT64_C(1) << (p->slot % 64));
}

/* -- waiting ----------------------------------------------------------------------------------- */

/* Who waits for this entry is told to look: the first of them, or all, where there is nothing left to wait
 * for and each can go its own way. One that was told and has not looked yet is not told again, nor is the
 * next one in its place. Under `lock`, without which none leaves its frame. */
static void wake(struct entry_map *m, const struct entry *e, int all)
{
	for (struct entry_waiter *w = m->first; w; w = w->next) {
		if (w->pgoff != e->pgoff || w->order != e->order)
			continue;
		if (!w->awake) {
			__atomic_store_n(&w->awake, 1, __ATOMIC_RELAXED);
			syscall(SYS_futex, &w->awake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		}
		if (!all)
			return;
	}
}

struct turn {				/* what a thread waited for last */
	struct entry e;
	int waited;
};

/* We were told to look and may not have taken it: the next one is told, unless a holder is there to do it. */
static void pass_on(struct entry_map *m, const struct turn *t)
{
	struct place p;

	if (!t->waited)
		return;
	find(m, t->e.pgoff, &p);
	if (!p.state || entry_at(&p, t->e.pgoff).order != t->e.order || !(*p.state & ENTRY_LOCKED))
		wake(m, &t->e, 0);
}

/* Wait until entry e may be unlocked or gone. `lock` is given up meanwhile: whatever was found is stale. */
static void wait_for(struct entry_map *m, struct turn *t, const struct entry *e)
{
	struct entry_waiter w = {.pgoff = e->pgoff, .order = e->order}, **link;

	pass_on(m, t);
	t->e = *e;
	t->waited = 1;
	*m->end = &w;
	m->end = &w.next;
	pthread_mutex_unlock(&m->lock);
	while (!__atomic_load_n(&w.awake, __ATOMIC_RELAXED))	/* EINTR, EAGAIN: look again */
		syscall(SYS_futex, &w.awake, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	pthread_mutex_lock(&m->lock);
	for (link = &m->first; *link != &w; link = &(*link)->next)
		;
	*link = w.next;
	if (!w.next)
		m->end = link;
}

/* The end of whatever may have waited. */
static void leave(struct entry_map *m, const struct turn *t)
{
	pass_on(m, t);
	pthread_mutex_unlock(&m->lock);
}

/* The entry at p goes; who waits for it looks for another one. */
static void drop(struct entry_map *m, struct place *p, uint64_t pgoff)
{
	struct entry e = entry_at(p, pgoff);

	unmark(m, p);
	*p->state = 0;
	m->count--;
	if (p->pages && !--p->pages->used) {
		free(p->pages);
		p->pages = p->g->pages[p->slot] = NULL;
		p->g->used--;
	} else if (e.order) {
		p->g->used--;
	}
	group_free_if_empty(m, p);
	wake(m, &e, 1);
}

/* -- what a fault does ------------------------------------------------------------------------- */

/* A PTE is wanted inside the PMD entry of the zero page at p: unmap that while it is locked, then drop it. */
static void downgrade(struct entry_map *m, struct place *p, uint64_t pgoff)
{
	*p->state |= ENTRY_LOCKED;
	pthread_mutex_unlock(&m->lock);
	m->unmap(m->ctx, pgoff & ~FAULT_COLOUR, FAULT_PMD_PAGES);
	pthread_mutex_lock(&m->lock);
	find(m, pgoff, p);		/* the entry is where it was; its group may have moved in the array */
	drop(m, p, pgoff);
}

int entry_grab(struct entry_map *m, uint64_t pgoff, unsigned order, struct entry *out)
{
	struct turn t = {.waited = 0};
	struct place p;
	struct entry e;
	int err = 0;

	assert(pgoff < DAXFS_MAX_PGOFF && (!order || order == FAULT_PMD_ORDER));
	pthread_mutex_lock(&m->lock);
	for (;;) {
		find(m, pgoff, &p);
		if (order && p.pages) {
			err = -EEXIST;
			break;
		}
		if (!p.state) {
			err = make(m, &p, pgoff, order);
			break;
		}
		if (*p.state & ENTRY_LOCKED) {
			e = entry_at(&p, pgoff);
			wait_for(m, &t, &e);
		} else if (!order && *p.state & ENTRY_PMD && *p.state & ENTRY_ZERO) {
			downgrade(m, &p, pgoff);
		} else {
			*p.state |= ENTRY_LOCKED;
			break;
		}
	}
	if (!err)
		*out = entry_at(&p, pgoff);
	leave(m, &t);
	return err;
}

void entry_insert(struct entry_map *m, struct entry *e, unsigned how)
{
	struct place p;

	assert(!(how & ENTRY_ZERO && how & ENTRY_DIRTY));
	/* Storage takes the place of the zero page: nobody may go on reading that. Faults wait for the entry. */
	if (e->state & ENTRY_ZERO && !(how & ENTRY_ZERO))
		m->unmap(m->ctx, e->pgoff, UINT64_C(1) << e->order);
	pthread_mutex_lock(&m->lock);
	find(m, e->pgoff, &p);
	assert(p.state && *p.state & ENTRY_LOCKED);
	if (*p.state & (ENTRY_ZERO | ENTRY_EMPTY))
		*p.state = (*p.state & ~(ENTRY_ZERO | ENTRY_EMPTY)) | (how & ENTRY_ZERO);
	if (how & ENTRY_DIRTY)
		mark(m, &p);
	*e = entry_at(&p, e->pgoff);
	pthread_mutex_unlock(&m->lock);
}

void entry_unlock(struct entry_map *m, const struct entry *e)
{
	struct place p;

	pthread_mutex_lock(&m->lock);
	find(m, e->pgoff, &p);
	assert(p.state && *p.state & ENTRY_LOCKED);
	if (*p.state & ENTRY_EMPTY) {
		drop(m, &p, e->pgoff);
	} else {
		*p.state &= ~ENTRY_LOCKED;
		wake(m, e, 0);
	}
	pthread_mutex_unlock(&m->lock);
}

int entry_mkwrite(struct entry_map *m, uint64_t pgoff, unsigned order, struct entry *out)
{
	struct turn t = {.waited = 0};
	struct place p;
	int found;

	pthread_mutex_lock(&m->lock);
	for (;;) {
		find(m, pgoff, &p);
		found = p.state != NULL;
		if (found)
			*out = entry_at(&p, pgoff);
		if (!found || !(out->state & ENTRY_LOCKED))
			break;
		wait_for(m, &t, out);
	}
	found = found && out->order == order && !(out->state & ENTRY_ZERO);
	if (found) {
		*p.state |= ENTRY_LOCKED;
		mark(m, &p);
		*out = entry_at(&p, pgoff);
	}
	leave(m, &t);
	return found;
}

/* -- invalidation ------------------------------------------------------------------------------ */

/* The dirty PMD entry at p goes in [first, last] alone: its other pages become dirty PTE entries. */
static int take_apart(struct entry_map *m, struct place *p, uint64_t base, uint64_t first, uint64_t last)
{
	struct entry_pages *pages = calloc(1, sizeof(*pages));
	struct entry e = entry_at(p, base);

	if (!pages)
		return -ENOMEM;
	unmark(m, p);
	*p->state = 0;
	m->count--;
	p->pages = p->g->pages[p->slot] = pages;
	for (uint64_t at = base; at < base + FAULT_PMD_PAGES; at++) {
		if (at >= first && at <= last)
			continue;
		p->state = &pages->state[at & FAULT_COLOUR];
		*p->state = ENTRY_THERE;
		pages->used++;
		m->count++;
		mark(m, p);
	}
	wake(m, &e, 1);
	return 0;
}

/* Entry e, which nobody holds, goes, or what of it is in [first, last]; 0 or -ENOMEM. */
static int drop_range(struct entry_map *m, const struct entry *e, uint64_t first, uint64_t last)
{
	uint64_t end = e->pgoff + (UINT64_C(1) << e->order) - 1;
	struct place p;

	find(m, e->pgoff, &p);
	if (e->state & ENTRY_DIRTY && (e->pgoff < first || end > last))
		return take_apart(m, &p, e->pgoff, first, last);
	drop(m, &p, e->pgoff);
	return 0;
}

int64_t entry_drop(struct entry_map *m, uint64_t first, uint64_t count, int keep_dirty)
{
	uint64_t at = first, last = count > UINT64_MAX - first ? UINT64_MAX : first + count - 1;
	struct turn t = {.waited = 0};
	struct entry e;
	int64_t n = 0;

	if (!count)
		return 0;
	pthread_mutex_lock(&m->lock);
	while (n >= 0 && next_entry(m, at, last, ENTRY_THERE, &e)) {
		if (e.state & ENTRY_LOCKED) {
			wait_for(m, &t, &e);
			continue;
		}
		at = e.pgoff + (UINT64_C(1) << e.order);
		if (keep_dirty && e.state & ENTRY_DIRTY)
			continue;
		n = drop_range(m, &e, first, last) ? -ENOMEM : n + 1;
		if (n % RELAX == RELAX - 1) {
			pthread_mutex_unlock(&m->lock);
			pthread_mutex_lock(&m->lock);
		}
	}
	leave(m, &t);
	return n;
}

void entry_forget(struct entry_map *m, uint64_t first, uint64_t last)
{
	struct place p;
	struct entry e;
	uint64_t at = first;

	pthread_mutex_lock(&m->lock);
	while (at < last && next_entry(m, at, last - 1, ENTRY_THERE, &e)) {
		at = e.pgoff + (UINT64_C(1) << e.order);
		if (e.pgoff < first || at > last || e.state & ENTRY_LOCKED)
			continue;
		find(m, e.pgoff, &p);
		drop(m, &p, e.pgoff);
	}
	pthread_mutex_unlock(&m->lock);
}

/* -- writeback --------------------------------------------------------------------------------- */

int entry_next_dirty(struct entry_map *m, uint64_t first, uint64_t last, struct entry *out)
{
	struct turn t = {.waited = 0};
	struct place p;
	int found;

	pthread_mutex_lock(&m->lock);
	/* One that is being flushed is still dirty: it is waited for, and looked at again. */
	while ((found = next_entry(m, first, last, ENTRY_DIRTY, out)) && out->state & ENTRY_LOCKED)
		wait_for(m, &t, out);
	if (found) {
		find(m, out->pgoff, &p);
		*p.state |= ENTRY_LOCKED;
		out->state |= ENTRY_LOCKED;
	}
	leave(m, &t);
	return found;
}

void entry_clean(struct entry_map *m, struct entry *e)
{
	struct place p;

	pthread_mutex_lock(&m->lock);
	find(m, e->pgoff, &p);
	assert(p.state && *p.state & ENTRY_LOCKED);
	unmark(m, &p);
	*e = entry_at(&p, e->pgoff);
	pthread_mutex_unlock(&m->lock);
}

int entry_take_dirty(struct entry_map *m, uint64_t first, uint64_t last,
		     int (*take)(void *ctx, const struct entry *e), void *ctx)
{
	struct place p;
	struct entry e;
	int err = 0, held = 0;

	pthread_mutex_lock(&m->lock);
	while (!err && first <= last && next_entry(m, first, last, ENTRY_DIRTY, &e)) {
		first = e.pgoff + (UINT64_C(1) << e.order);
		if (e.state & ENTRY_LOCKED) {
			held = 1;
			continue;
		}
		err = take(ctx, &e);
		if (!err) {
			find(m, e.pgoff, &p);
			unmark(m, &p);
		}
	}
	pthread_mutex_unlock(&m->lock);
	return err ? err : held;
}

/* -- questions --------------------------------------------------------------------------------- */

unsigned entry_state(struct entry_map *m, uint64_t pgoff)
{
	struct place p;
	unsigned state;

	pthread_mutex_lock(&m->lock);
	find(m, pgoff, &p);
	state = p.state ? *p.state : 0;
	pthread_mutex_unlock(&m->lock);
	return state;
}

int entry_pte_there(struct entry_map *m, uint64_t pgoff)
{
	struct place p;

	pthread_mutex_lock(&m->lock);
	find(m, pgoff, &p);
	pthread_mutex_unlock(&m->lock);
	return p.pages != NULL;
}

uint64_t entry_count(struct entry_map *m, uint64_t *dirty)
{
	uint64_t n;

	pthread_mutex_lock(&m->lock);
	n = m->count;
	*dirty = m->dirty;
	pthread_mutex_unlock(&m->lock);
	return n;
}
