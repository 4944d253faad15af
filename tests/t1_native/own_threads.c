/* SPDX-License-Identifier: MIT
 *
 * daxio.c, own.c and lost.c under real threads: readers and writers on own ranges, one who moves and mends
 * their mappings, and a program that stores, punches and truncates the files below behind everybody's back.
 * Built by test_daxio_threads.py, also with sanitizers. usage: own_threads ROUNDS [SEED]
 *
 * Every byte of range i is i + 1 or 0, whoever stores it: another value would be another range's, by an
 * address of before. Nothing but -EIO of a torn range may fail, and the region stays alive.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxfs/native/daxio.h"
#include "daxfs/native/lost.h"
#include "daxfs/native/own.h"
#include "daxfs/native/tracker.h"
#include "check.h"

#define PAGE 4096ul
#define FILES 2
#define PAGES 64ul			/* of a range; a place of the window has as many */
#define PLACES 8			/* more than ranges: who moves finds a free one */
#define SHIFT 18			/* of PAGES * PAGE */
#define FIRST_PFN (UINT64_C(1) << 40)
#define THREADS 6

static struct range_table table;
static struct daxfs_flush ops;
static struct daxio io = {.table = &table, .ops = &ops, .writable = 1, .ram = 1};
static struct filemap file[FILES];
static struct own_range own[FILES];
static struct own_range *at[PLACES];	/* as lost.h has it */
static int program_fd[FILES];
static char *window;
static int stop, torn, mended;

struct worker {
	pthread_t thread;
	void (*step)(struct worker *, int);
	unsigned seed;
	long turns;
	char buf[PAGES * PAGE];
};
static struct worker workers[THREADS];

static unsigned draw(struct worker *w, unsigned n)
{
	w->seed = w->seed * 1103515245u + 12345u;
	return (w->seed >> 16) % n;
}

/* What it may give: 0, or -EIO where the range is torn. Lock held: nobody mends it meanwhile. */
static void fine(int i, int err)
{
	CHECK(!err || (err == -EIO && __atomic_load_n(&own[i].torn, __ATOMIC_SEQ_CST)));
	CHECK(!__atomic_load_n(&table.lost, __ATOMIC_SEQ_CST));
	if (err)
		__atomic_fetch_add(&torn, 1, __ATOMIC_RELAXED);
}

static void read_step(struct worker *w, int i)
{
	struct filemap *f = &file[i];
	uint64_t pos = draw(w, PAGES * PAGE - 1), size;
	int err = 0;

	file_lock_take(&f->lock, 0);
	size = pos < f->size ? f->size - pos : 0;
	if (size && !__atomic_load_n(&f->own->torn, __ATOMIC_SEQ_CST)) {
		err = dax_copy_out(&io, f, pos, size, w->buf);
		/* The program makes the file shorter for moments: pread finds its end. */
		if (err == -EIO && !__atomic_load_n(&f->own->torn, __ATOMIC_SEQ_CST))
			err = 0, size = 0;
	} else {
		size = 0;
	}
	fine(i, err);
	file_lock_give(&f->lock);
	for (uint64_t n = 0; !err && n < size; n++)
		CHECK(!w->buf[n] || w->buf[n] == i + 1);
}

/* As serve_file.c does it: storage, data, size; the range as long as the file in the end. */
static void write_step(struct worker *w, int i)
{
	struct filemap *f = &file[i];
	uint64_t pos, size = 1 + draw(w, 5 * PAGE), first, last;
	int err = 0;

	memset(w->buf, i + 1, size);
	file_lock_take(&f->lock, 1);
	pos = draw(w, 2) ? f->size : draw(w, (unsigned)f->size + 1);
	first = pos / PAGE;
	last = (pos + size + PAGE - 1) / PAGE;
	if (last <= PAGES && !__atomic_load_n(&f->own->torn, __ATOMIC_SEQ_CST)) {
		if (!dax_covered(f, pos, size))
			CHECK(!own_cover(f, first, last));
		CHECK(dax_covered(f, pos, size) && f->own->pages * PAGE >= pos + size);
		err = dax_copy_in(&io, f, pos, size, w->buf, w->seed & 1);
		if (!err && pos + size > f->size)
			f->size = pos + size;
		if (err)
			CHECK(!own_resize(f, (f->size + PAGE - 1) / PAGE));
	}
	fine(i, err);
	file_lock_give(&f->lock);
}

static void change_step(struct worker *w, int i)
{
	struct filemap *f = &file[i];
	uint64_t pos, end;

	file_lock_take(&f->lock, 1);
	switch (draw(w, 3)) {
	case 0:
		CHECK(!own_learn(f, draw(w, PAGES), PAGES, 1 + draw(w, 5)));
		break;
	case 1:
		pos = draw(w, PAGES * PAGE);
		end = pos + draw(w, 9 * PAGE);
		CHECK(!own_punch(f, pos, end));
		break;
	default:
		f->size = draw(w, PAGES * PAGE);
		CHECK(!own_resize(f, (f->size + PAGE - 1) / PAGE));
	}
	CHECK(own_seek(f, 0, 1) >= 0);
	file_lock_give(&f->lock);
}

/* As OwnRange.reach and mend: at another place, or anew at the same one. Lock held exclusively. */
static void map_range(struct filemap *f, int place)
{
	struct own_range *o = f->own;
	uint64_t pfn = FIRST_PFN + place * PAGES;

	for (int k = 0; k < PLACES; k++) {
		if (__atomic_load_n(&at[k], __ATOMIC_SEQ_CST) != o)
			continue;
		__atomic_store_n(&at[k], NULL, __ATOMIC_SEQ_CST);
		CHECK(mmap(window + k * PAGES * PAGE, PAGES * PAGE, PROT_NONE,
			   MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
	}
	CHECK(mmap(window + place * PAGES * PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, o->fd,
		   0) != MAP_FAILED);
	for (size_t k = 0; k < f->n; k++)
		f->e[k].pfn = pfn + f->e[k].pgoff;
	o->pfn = pfn;
	o->room = PAGES;
	__atomic_store_n(&at[place], o, __ATOMIC_SEQ_CST);
}

static void move_step(struct worker *w, int i)
{
	struct filemap *f = &file[i];
	int place;

	file_lock_take(&f->lock, 1);
	if (__atomic_load_n(&f->own->torn, __ATOMIC_SEQ_CST)) {
		CHECK(!filemap_splice(f, 0, f->n, NULL, 0));
		__atomic_store_n(&f->own->torn, 0, __ATOMIC_SEQ_CST);
		map_range(f, (int)((f->own->pfn - FIRST_PFN) / PAGES));
		__atomic_fetch_add(&mended, 1, __ATOMIC_RELAXED);
	} else {
		place = i + FILES * (int)draw(w, PLACES / FILES);	/* nobody else's */
		map_range(f, place);
	}
	file_lock_give(&f->lock);
	sched_yield();
}

/* No lock: what any program may do, and a shorter file for a moment, which none may. */
static void program_step(struct worker *w, int i)
{
	uint64_t page = draw(w, PAGES), pages = 1 + draw(w, 6);
	off_t size;

	switch (draw(w, 8)) {
	case 0:
		size = lseek(program_fd[i], 0, SEEK_END);
		file_lock_take(&file[i].lock, 0);	/* so that the length that it gets back is right */
		size = (off_t)(own[i].pages * PAGE);
		CHECK(!ftruncate(program_fd[i], size / 2));
		file_lock_give(&file[i].lock);
		sched_yield();
		file_lock_take(&file[i].lock, 1);
		CHECK(!ftruncate(program_fd[i], (off_t)(own[i].pages * PAGE)));
		file_lock_give(&file[i].lock);
		break;
	case 1: case 2:
		memset(w->buf, i + 1, PAGE);
		size = lseek(program_fd[i], 0, SEEK_END);
		if ((off_t)((page + 1) * PAGE) <= size)
			CHECK(pwrite(program_fd[i], w->buf, PAGE, (off_t)(page * PAGE)) > 0);
		break;
	default:
		CHECK(!fallocate(program_fd[i], FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)(page * PAGE),
				 (off_t)(pages * PAGE)));
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		w->step(w, (int)draw(w, FILES));
		__atomic_fetch_add(&w->turns, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static long slowest(void)
{
	long least = LONG_MAX, turns;

	for (int i = 0; i < THREADS; i++) {
		turns = __atomic_load_n(&workers[i].turns, __ATOMIC_RELAXED);
		least = turns < least ? turns : least;
	}
	return least;
}

static void make_ranges(void)
{
	char path[64];

	CHECK(!daxfs_flush_bind(&ops, DAXFS_BYTE, DAXFS_FLUSH_NONE, DAXFS_NT_GENERIC));
	window = mmap(NULL, PLACES * PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(window != MAP_FAILED && PAGES * PAGE == 1ul << SHIFT);
	CHECK(!range_add(&table, FIRST_PFN, FIRST_PFN + PLACES * PAGES, window, 0));
	CHECK(!lost_watch_own(window, PLACES * PAGES * PAGE, at, SHIFT));
	for (int i = 0; i < FILES; i++) {
		filemap_init(&file[i]);
		file[i].tracker = &dax_tracker_none;
		own[i].fd = memfd_create("own", MFD_CLOEXEC);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", own[i].fd);
		program_fd[i] = open(path, O_RDWR | O_CLOEXEC);
		CHECK(own[i].fd >= 0 && program_fd[i] >= 0);
		file[i].own = &own[i];
		map_range(&file[i], i);
	}
}

int main(int argc, char **argv)
{
	static void (*const steps[THREADS])(struct worker *, int) = {
		read_step, write_step, program_step, move_step, read_step, change_step,
	};

	CHECK(argc >= 2);
	make_ranges();
	for (int i = 0; i < THREADS; i++) {
		workers[i].seed = (argc > 2 ? (unsigned)atol(argv[2]) : 1) * 77 + (unsigned)i;
		workers[i].step = steps[i];
		CHECK(!pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	while (slowest() < atol(argv[1]) || !__atomic_load_n(&mended, __ATOMIC_RELAXED))
		usleep(1000);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_join(workers[i].thread, NULL));
	CHECK(table.users == 0 && !table.dead && !table.lost);
	printf("torn %d times for somebody, mended %d times\n", torn, mended);
	lost_forget(window);
	for (int i = 0; i < FILES; i++) {
		filemap_destroy(&file[i]);
		close(own[i].fd);
		close(program_fd[i]);
	}
	free(table.r);
	return 0;
}
