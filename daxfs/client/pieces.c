/* SPDX-License-Identifier: MIT
 *
 * Which addresses are ours: pieces in ascending order, looked up without a lock or a system call.
 *
 * Two arrays take turns. Change number n is written to array n % 2 and published when it is whole, so a
 * reader has a whole array before it unless two more changes begin while it looks; then it looks again.
 * Arrays that became too small stay where they are (a slow reader may be in one): as each is twice the
 * one before, they are never more than the one in use. Writers hold client_lock.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daxfs/client/lib.h"

/* To begin with: more than the largest reservation (mremap), so that growing is rare. It is a mmap(2), which
 * may get the very place that the program has unmapped to grow into. */
#define ROOM 512

struct array {
	size_t room, n;
	struct piece piece[];
};

static struct array *arrays[2];
static uint64_t begun, published;	/* numbers of the last change: begun, whole */

static struct array *current(void)
{
	return arrays[published & 1];
}

/* The index of the first piece that ends behind `start`. */
static size_t search(const struct array *a, size_t n, uintptr_t start)
{
	size_t low = 0, high = n, mid;

	while (low < high) {
		mid = (low + high) / 2;
		if (a->piece[mid].end > start)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

int pieces_next(uintptr_t start, uintptr_t end, struct piece *out)
{
	uint64_t number;
	struct array *a;
	size_t n, i;
	int found;

	do {
		number = __atomic_load_n(&published, __ATOMIC_ACQUIRE);
		a = __atomic_load_n(&arrays[number & 1], __ATOMIC_ACQUIRE);
		if (!a)
			return 0;
		n = a->n < a->room ? a->n : a->room;
		i = search(a, n, start);
		found = i < n && a->piece[i].start < end;
		if (found)
			*out = a->piece[i];
		/* The loads above before the look whether they were of one array. */
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while (__atomic_load_n(&begun, __ATOMIC_RELAXED) > number + 1);
	return found;
}

static int grow(int which, size_t room)
{
	size_t bytes = sizeof(struct array) + room * sizeof(struct piece);
	struct array *a = (struct array *)syscall(SYS_mmap, NULL, bytes, PROT_READ | PROT_WRITE,
						  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (a == MAP_FAILED)
		return -ENOMEM;
	a->room = room;
	if (arrays[which]) {
		a->n = arrays[which]->n;
		memcpy(a->piece, arrays[which]->piece, a->n * sizeof(struct piece));
	}
	__atomic_store_n(&arrays[which], a, __ATOMIC_RELEASE);
	return 0;
}

int pieces_reserve(size_t more)
{
	size_t n = current() ? current()->n : 0, room = ROOM;
	int which;

	while (room < n + more)
		room *= 2;
	for (which = 0; which < 2; which++)
		if ((!arrays[which] || arrays[which]->room < n + more) && grow(which, room))
			return -ENOMEM;
	return 0;
}

/* The array of the next change. */
static struct array *begin(void)
{
	__atomic_store_n(&begun, published + 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);	/* no store of the change is seen before this number */
	return arrays[(published + 1) & 1];
}

static void publish(void)
{
	__atomic_store_n(&published, begun, __ATOMIC_RELEASE);
}

void pieces_cut(uintptr_t start, uintptr_t end)
{
	struct array *from = current(), *to;
	struct piece p;
	size_t i;

	candidates_forget(start, end);
	if (!from || !pieces_next(start, end, &p))
		return;
	to = begin();
	to->n = 0;
	for (i = 0; i < from->n; i++) {
		p = from->piece[i];
		if (p.end <= start || p.start >= end) {
			to->piece[to->n++] = p;
			continue;
		}
		if (p.start < start && p.end > end && p.holder >= 0)
			kernel_share(p.holder);
		if (p.start < start) {
			p.end = start;
			to->piece[to->n++] = p;
			p = from->piece[i];
		}
		if (p.end > end) {
			p.offset += end - p.start;
			p.start = end;
			to->piece[to->n++] = p;
		}
		if (from->piece[i].start >= start && from->piece[i].end <= end && p.holder >= 0)
			kernel_let_go(p.holder);
	}
	publish();
}

void pieces_put(const struct piece *p)
{
	struct array *from, *to;
	size_t i;

	pieces_cut(p->start, p->end);
	from = current();
	to = begin();
	i = search(from, from->n, p->start);
	memcpy(to->piece, from->piece, i * sizeof(*p));
	to->piece[i] = *p;
	memcpy(to->piece + i + 1, from->piece + i, (from->n - i) * sizeof(*p));
	to->n = from->n + 1;
	publish();
}

size_t pieces_count(void)
{
	return current() ? current()->n : 0;
}
