/* SPDX-License-Identifier: MIT
 *
 * Which pages can have been stored to: what a write-back has to look at in the page table, where the records
 * of page faults (records.c) say that, and not all of its range.
 *
 * Addresses are *known* once a write-back has scanned all of them after a look at the records: from then on
 * each store to a page that is not protected was one to a *candidate*. A fault makes its page one; it is
 * none any more when it is scanned, and protected, again. Everything is unknown again when a fault is without
 * record, and what is mapped, unmapped or changed by pieces.c is.
 *
 * Order of a write-back of all of a range: look at the records, known from here on, scan. A fault between the
 * look and the scan is in a record that comes later, or counts as one that is missing.
 *
 * Locks: one mutex, below the turns of write-back and client_lock, nothing is taken under it. Signals wait,
 * as for a turn.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>

#include "daxfs/client/lib.h"

#define KNOWN 1024		/* runs of addresses */
#define CANDIDATES 4096		/* runs of pages; more: not known any more */
#define WORTH (64 * CLIENT_PAGE)	/* less is scanned in the time that a look takes */
#define GAP (32 * CLIENT_PAGE)	/* scanned in less time than another call takes */
#define A_CALL 128		/* pages that a scan sees in the time of a call */
#define EVERY 4096		/* of so many write-backs one scans all: what others stored for us is found then */

struct span { uintptr_t start, end; };
struct set { struct span *span; size_t n, room; };

static struct span known_spans[KNOWN], candidate_spans[CANDIDATES];
static struct set known = {known_spans, 0, KNOWN}, candidates = {candidate_spans, 0, CANDIDATES};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t some, all;	/* write-backs of candidates alone, of all of a range */
static unsigned in_a_row;	/* of candidates alone */

/* -- sets: ascending, apart from each other -- */

/* The first that ends behind `at`. */
static size_t find(const struct set *s, uintptr_t at)
{
	size_t low = 0, high = s->n, mid;

	while (low < high) {
		mid = (low + high) / 2;
		if (s->span[mid].end > at)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

/* Put `with` (or nothing) in place of those from `first` up to, without, `last`. 0: there is no room. */
static int replace(struct set *s, size_t first, size_t last, const struct span *with, size_t count)
{
	if (s->n - (last - first) + count > s->room)
		return 0;
	memmove(s->span + first + count, s->span + last, (s->n - last) * sizeof(*with));
	memcpy(s->span + first, with, count * sizeof(*with));
	s->n += count - (last - first);
	return 1;
}

/* Add a span, and what is between it and others no farther away than `gap`. 0: there is no room. */
static int add(struct set *s, uintptr_t start, uintptr_t end, uintptr_t gap)
{
	size_t first = find(s, start > gap ? start - gap - 1 : 0), last = first;
	struct span new = {start, end};

	for (; last < s->n && s->span[last].start <= end + gap; last++) {
		if (s->span[last].start < new.start)
			new.start = s->span[last].start;
		if (s->span[last].end > new.end)
			new.end = s->span[last].end;
	}
	return replace(s, first, last, &new, 1);
}

/* Take addresses out. 0: there is no room for what is left on both sides, and nothing was done. */
static int cut(struct set *s, uintptr_t start, uintptr_t end)
{
	size_t first = find(s, start), last = first, n = 0;
	struct span left[2];

	while (last < s->n && s->span[last].start < end)
		last++;
	if (first == last)
		return 1;
	if (s->span[first].start < start)
		left[n++] = (struct span){s->span[first].start, start};
	if (s->span[last - 1].end > end)
		left[n++] = (struct span){end, s->span[last - 1].end};
	return replace(s, first, last, left, n);
}

/* -- under the lock -- */

static void forget_all(void)
{
	known.n = candidates.n = 0;
}

static void forget(uintptr_t start, uintptr_t end)
{
	/* Too many candidates do no harm, too little that is known does none either. */
	cut(&candidates, start, end);
	if (!cut(&known, start, end))
		forget_all();
}

static void faulted(uintptr_t address)
{
	uintptr_t page = address & ~(CLIENT_PAGE - 1);
	size_t i = find(&known, page);

	if (i == known.n || known.span[i].start > page)
		return;
	if (!add(&candidates, page, page + CLIENT_PAGE, GAP))
		forget(known.span[i].start, known.span[i].end);
}

/* Are they known, and is it less work to look at the candidates than at all of them? */
static int is_less(uintptr_t start, uintptr_t end)
{
	uintptr_t pages = (end - start) / CLIENT_PAGE, work = 0;
	size_t i = find(&known, start);

	if (i == known.n || known.span[i].start > start || known.span[i].end < end)
		return 0;
	for (i = find(&candidates, start); i < candidates.n && candidates.span[i].start < end; i++)
		work += A_CALL + (candidates.span[i].end - candidates.span[i].start) / CLIENT_PAGE;
	return work <= pages + A_CALL;
}

static void begin_known(uintptr_t start, uintptr_t end)
{
	cut(&candidates, start, end);
	if (!add(&known, start, end, 0)) {
		forget_all();
		add(&known, start, end, 0);
	}
}

/* -- for others -- */

int candidates_begin(uintptr_t start, uintptr_t end, int protects)
{
	int r, less;

	if (end - start < WORTH)
		return 0;
	pthread_mutex_lock(&lock);
	r = records_look(faulted);
	if (r < 1)
		forget_all();
	less = r == 1 && is_less(start, end);
	if (protects && less && ++in_a_row == EVERY) {
		forget_all();
		in_a_row = less = 0;
	}
	if (protects && !less && r >= 0)
		begin_known(start, end);
	if (protects)
		less ? some++ : all++;
	pthread_mutex_unlock(&lock);
	return less;
}

int candidates_next(uintptr_t *at, uintptr_t end, int take, uintptr_t *first, uintptr_t *last)
{
	size_t i;
	int there;

	pthread_mutex_lock(&lock);
	i = find(&candidates, *at);
	there = i < candidates.n && candidates.span[i].start < end;
	if (there) {
		*first = candidates.span[i].start > *at ? candidates.span[i].start : *at;
		*last = candidates.span[i].end < end ? candidates.span[i].end : end;
		*at = *last;
		if (take)
			cut(&candidates, *first, *last);
	}
	pthread_mutex_unlock(&lock);
	return there;
}

void candidates_forget(uintptr_t start, uintptr_t end)
{
	pthread_mutex_lock(&lock);
	forget(start, end);
	pthread_mutex_unlock(&lock);
}

void candidates_before_fork(void)
{
	pthread_mutex_lock(&lock);
}

void candidates_after_fork(int child)
{
	if (child) {
		records_forked();
		forget_all();
	}
	pthread_mutex_unlock(&lock);
}

const char *candidates_counts(uint64_t *by_records, uint64_t *by_scan)
{
	const char *why;

	pthread_mutex_lock(&lock);
	*by_records = some;
	*by_scan = all;
	why = records_why();
	pthread_mutex_unlock(&lock);
	return why;
}
