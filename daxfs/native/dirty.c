/* SPDX-License-Identifier: MIT
 *
 * The dirty bitmap of dirty.h. Limits: not locked; units stop at 2^40 (DIRTY_LIMIT),
 * so that no sum of a start and a count can wrap.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daxfs/native/dirty.h"

#define CHUNK_MASK (DIRTY_CHUNK_BITS - 1)
#define MIN_CAP 4

int dirty_arena_init(struct dirty_arena *a, void *base, size_t bytes)
{
	size_t slots = bytes / DIRTY_SLOT_BYTES;

	memset(a, 0, sizeof(*a));
	if (slots > UINT32_MAX)
		slots = UINT32_MAX;
	a->back = malloc((slots ? slots : 1) * sizeof(*a->back));	/* costs memory as it is used */
	if (!a->back)
		return -ENOMEM;
	a->base = base;
	a->slots = (uint32_t)slots;
	pthread_mutex_init(&a->lock, NULL);
	return 0;
}

void dirty_arena_destroy(struct dirty_arena *a)
{
	if (!a->back)
		return;
	free(a->back);
	a->back = NULL;
	pthread_mutex_destroy(&a->lock);
}

uint32_t dirty_arena_used(struct dirty_arena *a)
{
	uint32_t used;

	pthread_mutex_lock(&a->lock);
	used = a->fresh - a->nback;
	pthread_mutex_unlock(&a->lock);
	return used;
}

uint64_t dirty_arena_fallbacks(struct dirty_arena *a)
{
	uint64_t n;

	pthread_mutex_lock(&a->lock);
	n = a->fallbacks;
	pthread_mutex_unlock(&a->lock);
	return n;
}

void *dirty_arena_take(struct dirty_arena *a)
{
	char *p = NULL;

	pthread_mutex_lock(&a->lock);
	if (a->nback)
		p = a->base + (size_t)a->back[--a->nback] * DIRTY_SLOT_BYTES;
	else if (a->fresh < a->slots)
		p = a->base + (size_t)a->fresh++ * DIRTY_SLOT_BYTES;
	else
		a->fallbacks++;
	pthread_mutex_unlock(&a->lock);
	return p;
}

static int in_arena(const struct dirty_arena *a, const void *p)
{
	return a && (uintptr_t)p - (uintptr_t)a->base < (uintptr_t)a->slots * DIRTY_SLOT_BYTES;
}

int dirty_arena_give(struct dirty_arena *a, const void *p)
{
	if (!in_arena(a, p))
		return 0;
	pthread_mutex_lock(&a->lock);
	a->back[a->nback++] = (uint32_t)(((const char *)p - a->base) / DIRTY_SLOT_BYTES);
	pthread_mutex_unlock(&a->lock);
	return 1;
}

/* A chunk of zeros, or NULL without memory. */
static struct dirty_chunk *chunk_new(struct dirty_map *m)
{
	struct dirty_chunk *c = m->arena ? dirty_arena_take(m->arena) : NULL;

	if (c)
		return memset(c, 0, sizeof(*c));
	return calloc(1, sizeof(*c));
}

static void chunk_free(struct dirty_map *m, struct dirty_chunk *c)
{
	if (m->last == c)
		m->last = NULL;
	if (!dirty_arena_give(m->arena, c))
		free(c);
}

void dirty_init(struct dirty_map *m, struct dirty_arena *arena)
{
	memset(m, 0, sizeof(*m));
	m->arena = arena;
}

void dirty_destroy(struct dirty_map *m)
{
	for (size_t i = 0; i < m->n; i++)
		chunk_free(m, m->chunk[i]);
	free(m->chunk);
	dirty_init(m, m->arena);
}

size_t dirty_in_dram(const struct dirty_map *m)
{
	size_t n = 0;

	for (size_t i = 0; i < m->n; i++)
		n += !in_arena(m->arena, m->chunk[i]);
	return n;
}

/* Index of the first chunk whose number is not below `number` (== n: none). */
static size_t find(const struct dirty_map *m, uint64_t number)
{
	size_t lo = 0, hi = m->n;
	uint64_t guess;

	/* Writes come in order more often than not: look at the end first. */
	if (hi && m->chunk[hi - 1]->number < number)
		return hi;
	/* Where no chunk is missing in between, its place is known: each one looked at is a line to fetch. */
	guess = hi ? number - m->chunk[0]->number : 0;
	if (guess < hi && m->chunk[guess]->number == number)
		return (size_t)guess;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->chunk[mid]->number < number)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Bits [lo, hi] of a word, 0 <= lo <= hi < 64. */
static inline uint64_t mask_of(unsigned lo, unsigned hi)
{
	return (~UINT64_C(0) << lo) & (~UINT64_C(0) >> (63 - hi));
}

/* What falls on word w of the bits [lo, hi] of a chunk. */
static inline uint64_t word_mask(unsigned w, unsigned lo, unsigned hi)
{
	return mask_of(w == lo / 64 ? lo % 64 : 0, w == hi / 64 ? hi % 64 : 63);
}

/* Set bits [lo, hi] of a chunk; how many were clear. */
static uint64_t chunk_set(struct dirty_chunk *c, unsigned lo, unsigned hi)
{
	uint64_t added = 0;

	for (unsigned w = lo / 64; w <= hi / 64; w++) {
		uint64_t mask = word_mask(w, lo, hi);

		added += (uint64_t)__builtin_popcountll(mask & ~c->word[w]);
		c->word[w] |= mask;
		c->summary[w / 64] |= UINT64_C(1) << (w % 64);
	}
	c->count += added;
	return added;
}

/* Clear bits [lo, hi] of a chunk; how many were set. */
static uint64_t chunk_clear(struct dirty_chunk *c, unsigned lo, unsigned hi)
{
	uint64_t gone = 0;

	for (unsigned w = lo / 64; w <= hi / 64; w++) {
		uint64_t mask = word_mask(w, lo, hi);

		gone += (uint64_t)__builtin_popcountll(mask & c->word[w]);
		c->word[w] &= ~mask;
		if (!c->word[w])
			c->summary[w / 64] &= ~(UINT64_C(1) << (w % 64));
	}
	c->count -= gone;
	return gone;
}

static uint64_t chunk_count(const struct dirty_chunk *c, unsigned lo, unsigned hi)
{
	uint64_t n = 0;

	if (lo == 0 && hi == CHUNK_MASK)
		return c->count;
	for (unsigned w = lo / 64; w <= hi / 64; w++)
		n += (uint64_t)__builtin_popcountll(word_mask(w, lo, hi) & c->word[w]);
	return n;
}

/* First set bit at or after `lo`, or DIRTY_CHUNK_BITS. At most one leaf word and the summary are read. */
static unsigned chunk_next_set(const struct dirty_chunk *c, unsigned lo)
{
	unsigned w = lo / 64, s;
	uint64_t bits = c->word[w] & (~UINT64_C(0) << (lo % 64));

	if (bits)
		return w * 64 + (unsigned)__builtin_ctzll(bits);
	if (++w == DIRTY_WORDS)
		return DIRTY_CHUNK_BITS;
	s = w / 64;
	bits = c->summary[s] & (~UINT64_C(0) << (w % 64));
	while (!bits) {
		if (++s == DIRTY_WORDS / 64)
			return DIRTY_CHUNK_BITS;
		bits = c->summary[s];
	}
	w = s * 64 + (unsigned)__builtin_ctzll(bits);
	return w * 64 + (unsigned)__builtin_ctzll(c->word[w]);
}

/* First clear bit at or after `lo`, or DIRTY_CHUNK_BITS. */
static unsigned chunk_next_clear(const struct dirty_chunk *c, unsigned lo)
{
	unsigned w = lo / 64;
	uint64_t bits = ~c->word[w] & (~UINT64_C(0) << (lo % 64));

	if (c->count == DIRTY_CHUNK_BITS)
		return DIRTY_CHUNK_BITS;
	while (!bits) {
		if (++w == DIRTY_WORDS)
			return DIRTY_CHUNK_BITS;
		bits = ~c->word[w];
	}
	return w * 64 + (unsigned)__builtin_ctzll(bits);
}

/* Room for `want` chunk pointers; 0 or -ENOMEM. */
static int reserve(struct dirty_map *m, size_t want)
{
	size_t cap = m->cap ? m->cap : MIN_CAP;
	struct dirty_chunk **p;

	if (want <= m->cap)
		return 0;
	while (cap < want)
		cap *= 2;
	p = realloc(m->chunk, cap * sizeof(*p));
	if (!p)
		return -ENOMEM;
	m->chunk = p;
	m->cap = cap;
	return 0;
}

/* Give pointer memory back once three quarters of it are idle. */
static void shrink(struct dirty_map *m)
{
	struct dirty_chunk **p;

	if (!m->n) {
		free(m->chunk);
		m->chunk = NULL;
		m->cap = 0;
	} else if (m->cap > MIN_CAP && m->n <= m->cap / 4) {
		p = realloc(m->chunk, m->cap / 2 * sizeof(*p));
		if (p) {
			m->chunk = p;
			m->cap /= 2;
		}
	}
}

/*
 * Make the chunks first..last exist, from index `at` on. All memory is had before the
 * map is touched; new chunks wait in a list threaded through `number`.
 */
static int populate(struct dirty_map *m, size_t at, uint64_t first, uint64_t last)
{
	size_t end = at, have, need, i;
	struct dirty_chunk *spare = NULL, *c;

	while (end < m->n && m->chunk[end]->number <= last)
		end++;
	have = end - at;
	need = last - first + 1;
	if (have == need)
		return 0;
	if (reserve(m, m->n + need - have))
		return -ENOMEM;
	for (i = have; i < need; i++) {
		c = chunk_new(m);
		if (!c) {
			while (spare) {
				c = spare;
				spare = (struct dirty_chunk *)(uintptr_t)c->number;
				chunk_free(m, c);
			}
			shrink(m);
			return -ENOMEM;
		}
		c->number = (uint64_t)(uintptr_t)spare;
		spare = c;
	}
	memmove(m->chunk + at + need, m->chunk + end, (m->n - end) * sizeof(*m->chunk));
	m->n += need - have;
	/* From the back, so that a chunk that is there is read before its place is written. */
	for (i = need; i-- > 0;) {
		if (end > at && m->chunk[end - 1]->number == first + i) {
			m->chunk[at + i] = m->chunk[--end];
			continue;
		}
		c = spare;
		spare = (struct dirty_chunk *)(uintptr_t)c->number;
		c->number = first + i;
		m->chunk[at + i] = c;
	}
	return 0;
}

int dirty_set(struct dirty_map *m, uint64_t first, uint64_t count)
{
	uint64_t last, c0, c1;
	size_t at;

	if (!count)
		return 0;
	if (first >= DIRTY_LIMIT || count > DIRTY_LIMIT - first)
		return -EINVAL;
	last = first + count - 1;
	c0 = first >> DIRTY_CHUNK_SHIFT;
	c1 = last >> DIRTY_CHUNK_SHIFT;
	at = find(m, c0);
	if (populate(m, at, c0, c1))
		return -ENOMEM;
	for (uint64_t c = c0; c <= c1; c++, at++)
		m->count += chunk_set(m->chunk[at], c == c0 ? first & CHUNK_MASK : 0,
				      c == c1 ? last & CHUNK_MASK : CHUNK_MASK);
	m->last = m->chunk[at - 1];
	return 0;
}

/* Last unit of [first, first+count), with what lies past the limit cut off; count > 0, first in the limit. */
static uint64_t last_of(uint64_t first, uint64_t count)
{
	return (count > DIRTY_LIMIT - first ? DIRTY_LIMIT : first + count) - 1;
}

void dirty_clear(struct dirty_map *m, uint64_t first, uint64_t count)
{
	uint64_t last, c0, c1;
	size_t i, keep;

	if (!count || first >= DIRTY_LIMIT)
		return;
	last = last_of(first, count);
	c0 = first >> DIRTY_CHUNK_SHIFT;
	c1 = last >> DIRTY_CHUNK_SHIFT;
	keep = i = find(m, c0);
	for (; i < m->n && m->chunk[i]->number <= c1; i++) {
		struct dirty_chunk *c = m->chunk[i];
		unsigned lo = c->number == c0 ? first & CHUNK_MASK : 0;
		unsigned hi = c->number == c1 ? last & CHUNK_MASK : CHUNK_MASK;

		if (lo == 0 && hi == CHUNK_MASK) {
			m->count -= c->count;
			c->count = 0;
		} else {
			m->count -= chunk_clear(c, lo, hi);
		}
		if (c->count)
			m->chunk[keep++] = c;
		else
			chunk_free(m, c);
	}
	if (keep == i)
		return;
	memmove(m->chunk + keep, m->chunk + i, (m->n - i) * sizeof(*m->chunk));
	m->n -= i - keep;
	shrink(m);
}

uint64_t dirty_next_run(const struct dirty_map *m, uint64_t from, uint64_t *len)
{
	uint64_t number = from >> DIRTY_CHUNK_SHIFT, start;
	unsigned bit, end;
	size_t i = find(m, number);

	for (; i < m->n; i++) {
		bit = chunk_next_set(m->chunk[i], m->chunk[i]->number == number ? from & CHUNK_MASK : 0);
		if (bit < DIRTY_CHUNK_BITS)
			break;
	}
	if (i == m->n) {
		*len = 0;
		return DIRTY_NONE;
	}
	number = m->chunk[i]->number;
	start = (number << DIRTY_CHUNK_SHIFT) + bit;
	end = chunk_next_clear(m->chunk[i], bit);
	*len = end - bit;
	/* A run goes on while the chunk is dirty to its end and the next one follows on it. */
	while (end == DIRTY_CHUNK_BITS && ++i < m->n && m->chunk[i]->number == ++number) {
		end = chunk_next_clear(m->chunk[i], 0);
		*len += end;
	}
	return start;
}

uint64_t dirty_count_range(const struct dirty_map *m, uint64_t first, uint64_t count)
{
	uint64_t last, c0, c1, sum = 0;

	if (!count || first >= DIRTY_LIMIT)
		return 0;
	last = last_of(first, count);
	c0 = first >> DIRTY_CHUNK_SHIFT;
	c1 = last >> DIRTY_CHUNK_SHIFT;
	for (size_t i = find(m, c0); i < m->n && m->chunk[i]->number <= c1; i++) {
		const struct dirty_chunk *c = m->chunk[i];

		sum += chunk_count(c, c->number == c0 ? first & CHUNK_MASK : 0,
				   c->number == c1 ? last & CHUNK_MASK : CHUNK_MASK);
	}
	return sum;
}

int dirty_test(const struct dirty_map *m, uint64_t unit)
{
	uint64_t number = unit >> DIRTY_CHUNK_SHIFT;
	size_t i = find(m, number);

	if (i == m->n || m->chunk[i]->number != number)
		return 0;
	return m->chunk[i]->word[(unit & CHUNK_MASK) / 64] >> (unit % 64) & 1;
}
