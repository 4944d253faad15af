/* SPDX-License-Identifier: MIT
 *
 * The client's C half without a mount: observed mappings of a memfd, with a daemon that is made up here and
 * counts. The functions of preload.c are this program's own, so it calls them as a preloaded program would.
 *
 * Each case is a process of its own: client_table CASE. What a write-back does is told by the counters of the
 * flush table: a page is 64 lines.
 */
#define _GNU_SOURCE
#include <sched.h>

#include "tests/t1_native/client_daemon.h"

static void case_msync(void)
{
	struct daxfs_piece piece[2];
	int fd = new_file();
	char *at = observed(fd);

	close(fd);
	CHECK(dirty_pages(at, SIZE) == 0);
	at[3 * 4096] = at[3 * 4096 + 99] = at[5 * 4096 + 4095] = 1;
	CHECK(at[9 * 4096] == 0);	/* a load is no store */
	CHECK(daxfs_dirty(at, SIZE, piece, 2) == 2 && piece[0].start == at + 3 * 4096 && piece[0].length == 4096);
	CHECK(piece[1].start == at + 5 * 4096 && piece[1].length == 4096);
	CHECK(daxfs_dirty(at, SIZE, piece, 1) == 1);
	CHECK(written() == 0);
	CHECK(!daxfs_msync(at + 2 * 4096, 2 * 4096, MS_SYNC) && written() == 1 && dirty_pages(at, SIZE) == 1);
	CHECK(!daxfs_msync(at, SIZE, MS_ASYNC) && written() == 0 && dirty_pages(at, SIZE) == 1);
	CHECK(!daxfs_msync(at, SIZE, MS_SYNC | MS_INVALIDATE) && written() == 1);
	CHECK(!daxfs_msync(at, SIZE, MS_SYNC) && written() == 0 && dirty_pages(at, SIZE) == 0);
	at[3 * 4096] = 2;
	CHECK(!daxfs_persist(at + 3 * 4096, 4096) && written() == 1 && dirty_pages(at, SIZE) == 1);
	CHECK(!daxfs_unmap(at, SIZE) && written() == 1 && seen->forgotten == 1 && seen->dirty == 0);
	CHECK(pieces_count() == 0 && daxfs_info_at(at, &(struct daxfs_info){0}) == -1 && errno == ENOENT);
}

static void case_errors(void)
{
	int fd = new_file();
	char *at = observed(fd);

	CHECK(daxfs_msync(at + 1, 4096, MS_SYNC) == -1 && errno == EINVAL);
	CHECK(daxfs_msync(at, 4096, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
	CHECK(daxfs_msync(at, 4096, 64) == -1 && errno == EINVAL);
	CHECK(daxfs_msync(at, SIZE_MAX, MS_SYNC) == -1 && errno == ENOMEM);
	CHECK(!mlock(at, 4096) && msync(at, 4096, MS_INVALIDATE) == -1 && errno == EBUSY && !munlock(at, 4096));
	CHECK(daxfs_unmap(at + 1, 4096) == -1 && errno == EINVAL);
	CHECK(!daxfs_map("/nowhere/at/all", 0, 0, 0, NULL) && errno == ENOENT);
	CHECK(!daxfs_map_fd(fd, 0, 1, 0, NULL) && errno == EINVAL);
	CHECK(!daxfs_map_fd(fd, 64, 0, 0, NULL) && errno == EINVAL);
	CHECK(!daxfs_map_fd(fd, 0, SIZE, 0, NULL) && errno == EINVAL);
	CHECK(!daxfs_map_fd(-1, 0, 0, 0, NULL) && errno == EBADF);
	CHECK(!syscall(SYS_munmap, at + 4096, 4096));
	CHECK(daxfs_dirty(at, SIZE, NULL, 0) == -1 && errno == EINVAL);
	CHECK(!munmap(at, SIZE) && daxfs_msync(at, SIZE, MS_SYNC) == -1 && errno == ENOMEM);
	CHECK(daxfs_persist(at, 64) == -1 && errno == ENOMEM);
}

static void case_plain(void)
{
	struct daxfs_info info;
	struct daxfs_piece piece;
	int fd = new_file();
	char *at;

	answer_about = -ENOTTY;
	at = daxfs_map_fd(fd, DAXFS_MAP_WRITE, 0, 0, &info);
	CHECK(at && !info.observed && info.error == ENOTTY && info.why && !strcmp(info.flush, "msync"));
	at[0] = 1;
	CHECK(!daxfs_msync(at, SIZE, MS_SYNC) && !daxfs_persist(at + 5, 100) && written() == 0);
	CHECK(daxfs_dirty(at, SIZE, &piece, 1) == -1 && errno == EOPNOTSUPP);
	CHECK(!daxfs_unmap(at, SIZE) && seen->observed == 0);
	CHECK(!daxfs_map_fd(fd, DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE, 0, 0, &info) && errno == EOPNOTSUPP);
	answer_about = 0;
	direct = 0;
	at = daxfs_map_fd(fd, DAXFS_MAP_WRITE, 0, 0, &info);
	CHECK(at && !info.observed && info.error == EOPNOTSUPP && !daxfs_unmap(at, SIZE));
	direct = syncs = 1;
	at = daxfs_map_fd(fd, DAXFS_MAP_WRITE, 0, 0, &info);
	CHECK(at && !info.observed && info.error == EOPNOTSUPP && strstr(info.why, "tracks stores by itself"));
	CHECK(!daxfs_unmap(at, SIZE) && !daxfs_map_fd(fd, DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE, 0, 0, NULL));
	syncs = 0;
	answer_observe = -ENOSPC;
	at = daxfs_map_fd(fd, DAXFS_MAP_WRITE, 0, 0, &info);
	CHECK(at && !info.observed && info.error == ENOSPC && !daxfs_unmap(at, SIZE));
	at = daxfs_map_fd(fd, DAXFS_MAP_WRITE | DAXFS_MAP_PRIVATE, 0, 0, &info);
	CHECK(at && !info.observed && (at[0] = 2) && !daxfs_unmap(at, SIZE) && pieces_count() == 0);
	at = daxfs_map_fd(fd, 0, 0, 0, &info);
	CHECK(at && !info.observed && at[0] == 1 && !daxfs_unmap(at, SIZE));
}

static void case_partial_munmap(void)
{
	struct daxfs_info info;
	int fd = new_file();
	char *at = observed(fd);

	memset(at, 1, SIZE);
	CHECK(!munmap(at + 16 * 4096, 8 * 4096) && written() == 8 && pieces_count() == 2);
	CHECK(seen->last_forget.address == (uintptr_t)at + 16 * 4096 && seen->last_forget.length == 8 * 4096);
	CHECK(seen->dirty == 0 && dirty_pages(at, 16 * 4096) == 16);
	CHECK(!daxfs_info_at(at + 30 * 4096, &info) && info.observed && info.offset == 30 * 4096);
	CHECK(msync(at, SIZE, MS_SYNC) == -1 && errno == ENOMEM && written() == 56);
	CHECK(!munmap(at, SIZE) && pieces_count() == 0 && seen->forgotten == 3);
}

static void case_mmap_fixed(void)
{
	int fd = new_file(), other = new_file();
	char *at = observed(fd), *new;

	memset(at, 1, SIZE);
	CHECK(mmap(at + 4096, 4096, PROT_READ, MAP_SHARED | MAP_FIXED, 99, 0) == MAP_FAILED && errno == EBADF);
	CHECK(written() == 1 && seen->observed == 2 && seen->forgotten == 1);
	at[4096] = 2;
	CHECK(dirty_pages(at, SIZE) == PAGES);	/* nothing was lost by the failure */
	new = mmap(at + 8 * 4096, 2 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(new == at + 8 * 4096 && new[0] == 0 && written() == 2);
	new = mmap(at + 20 * 4096, 2 * 4096, PROT_READ, MAP_SHARED | MAP_FIXED, other, 3 * 4096);
	CHECK(new == at + 20 * 4096 && seen->last.offset == 3 * 4096 && seen->last.address == (uintptr_t)new);
	CHECK(seen->last.prot & PROT_WRITE && !mprotect(new, 4096, PROT_READ | PROT_WRITE) && written() == 2);
	new[1] = 7;
	CHECK(!msync(new, 2 * 4096, MS_SYNC) && written() == 1 && !msync(at + 22 * 4096, 4096, MS_SYNC));
	CHECK(written() == 1 && !munmap(at, SIZE) && pieces_count() == 0);
}

static void case_mremap(void)
{
	struct daxfs_info info;
	int fd = new_file();
	char *at = observed(fd), *room, *to;

	at[0] = at[63 * 4096] = 1;
	to = mremap(at, SIZE, 32 * 4096, 0);	/* shrinks */
	CHECK(to == at && written() == 2 && pieces_count() == 1 && seen->last.length == 32 * 4096);
	room = mmap(NULL, 4 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	at[4096] = 1;
	to = mremap(at, 32 * 4096, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	CHECK(to == room && seen->last.address == (uintptr_t)room && seen->last.length == SIZE && pieces_count() == 1);
	CHECK(!daxfs_info_at(room + 50 * 4096, &info) && info.offset == 50 * 4096 && written() >= 1);
	CHECK(!msync(to, SIZE, MS_SYNC));
	written();
	to[4096] = to[60 * 4096] = 2;
	CHECK(!msync(to, SIZE, MS_SYNC) && written() == 2);
	at = mremap(to, 0, SIZE, MREMAP_MAYMOVE);	/* a second mapping */
	CHECK(at != MAP_FAILED && at != to && pieces_count() == 2);
	at[0] = to[4096] = 3;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1 && !msync(to, SIZE, MS_SYNC) && written() == 1);
	CHECK(mremap(to, 4096, 1ul << 46, 0) == MAP_FAILED && errno == ENOMEM);
	to[0] = 1;
	CHECK(!msync(to, SIZE, MS_SYNC) && written() == 1 && to[0] == at[0]);
}

static void case_madvise(void)
{
	int fd = new_file();
	char *at = observed(fd);

	at[0] = at[7 * 4096] = 5;
	CHECK(!madvise(at, 4096, MADV_DONTNEED) && written() == 1 && at[0] == 5);
	CHECK(!madvise(at, SIZE, MADV_PAGEOUT) && written() == 1 && at[7 * 4096] == 5);
	CHECK(!madvise(at, SIZE, MADV_RANDOM) && written() == 0);
	CHECK(madvise(at + 1, 4096, MADV_DONTNEED) == -1 && errno == EINVAL);
	at[9 * 4096] = 1;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() >= 1);
}

static void case_fork(void)
{
	int fd = new_file(), status;
	char *at = observed(fd);
	pid_t child;

	at[0] = 1;
	child = fork();
	if (!child) {
		CHECK(seen->observed == 2 && seen->observer == getpid() && seen->last.uffd >= 0);
		at[2 * 4096] = at[3 * 4096] = 2;
		CHECK(!msync(at, SIZE, MS_SYNC) && written() == 2 && !msync(at, SIZE, MS_SYNC) && written() == 0);
		at[4 * 4096] = 2;
		if (!fork()) {	/* and its child's */
			at[8 * 4096] = 1;
			CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1 && seen->observed == 3);
			_exit(0);
		}
		CHECK(wait(&status) > 0 && status == 0);
		exit(0);	/* writes back what is left, and tells the daemon */
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(seen->forgotten == 2 && seen->dirty == 0 && at[2 * 4096] == 2);
	CHECK(dirty_pages(at, 2 * 4096) == 1 && !msync(at, 2 * 4096, MS_SYNC) && written() == 1);
	if (!_Fork()) {		/* no handler ran: not observed, so that all that there is counts */
		at[0] = 3;
		CHECK(!msync(at, SIZE, MS_SYNC) && written() == 5);
		_exit(0);
	}
	CHECK(wait(&status) > 0 && status == 0);
}

static char *in_signal;
static volatile int signals;

static void handler(int number)
{
	in_signal[4096] = ++signals;
	CHECK(!msync(in_signal, SIZE, MS_SYNC));
}

static void case_signal(void)
{
	struct itimerval every = {{0, 300}, {0, 300}};
	int fd = new_file();

	in_signal = observed(fd);
	CHECK(signal(SIGALRM, handler) != SIG_ERR && !setitimer(ITIMER_REAL, &every, NULL));
	for (int i = 0; signals < 200; i++) {
		char *more = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		CHECK(more != MAP_FAILED);
		in_signal[0] = more[0] = i;
		CHECK(!msync(in_signal, SIZE, MS_SYNC) && !munmap(more, SIZE));
	}
}

#define THREADS 4
#define ROUNDS 400
static char *shared_at;
static int shared_fd;

static void *storer(void *number)
{
	char *mine = shared_at + (uintptr_t)number * 4096;

	for (int i = 0; i < ROUNDS; i++) {
		char *other = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 32 * 4096);

		mine[i % 4096] = i;
		CHECK(!msync(mine, 4096, MS_SYNC));
		CHECK(!munmap(other, 4096));
	}
	return NULL;
}

static void case_threads(void)
{
	pthread_t thread[THREADS];

	shared_fd = new_file();
	shared_at = observed(shared_fd);
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, storer, (void *)i));
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_join(thread[i], NULL));
	CHECK(written() == THREADS * ROUNDS && dirty_pages(shared_at, SIZE) == 0);
	CHECK(seen->observed == 1 + THREADS * ROUNDS && seen->forgotten == THREADS * ROUNDS && pieces_count() == 1);
}

#define TURNS 3000
static volatile int stored, seen_by_second;

static uint64_t lines_so_far(void)
{
	uint64_t calls, lines, drains;

	flushing_counts(&calls, &lines, &drains);
	return lines;
}

static void *second(void *unused)
{
	for (int i = 1; i <= TURNS; i++) {
		while (__atomic_load_n(&stored, __ATOMIC_ACQUIRE) < i)
			sched_yield();
		CHECK(!msync(shared_at, SIZE, MS_SYNC));
		/* Whoever found the pages: they are written back when this returns. */
		CHECK(lines_so_far() >= (uint64_t)i * PAGES / 2 * 64);
		__atomic_store_n(&seen_by_second, i, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void case_turns(void)
{
	pthread_t thread;

	shared_at = observed(new_file());
	CHECK(!pthread_create(&thread, NULL, second, NULL));
	for (int i = 1; i <= TURNS; i++) {
		for (int page = 0; page < PAGES; page += 2)
			shared_at[page * 4096] = i;
		__atomic_store_n(&stored, i, __ATOMIC_RELEASE);
		CHECK(!msync(shared_at, SIZE, MS_SYNC));
		while (__atomic_load_n(&seen_by_second, __ATOMIC_ACQUIRE) < i)
			sched_yield();
	}
	CHECK(!pthread_join(thread, NULL) && written() == TURNS * PAGES / 2);
}

#define PERSISTERS 300			/* more than have a place of their own (flushing.c) */
static pthread_barrier_t all_here;

static void *persister(void *line)
{
	for (int i = 0; i < TURNS; i++) {
		flushing_persist(0, (uintptr_t)line + 60, (uintptr_t)line + 68);
		if (!i)
			pthread_barrier_wait(&all_here);
	}
	return NULL;
}

/* None is lost where threads count at once, nor when they end and others take their places. */
static void case_counts(void)
{
	static char lines[4096] __attribute__((aligned(64)));
	uint64_t calls[2], all[2], drains[2];
	pthread_t thread[PERSISTERS];

	CHECK(!pthread_barrier_init(&all_here, NULL, PERSISTERS));
	flushing_counts(&calls[0], &all[0], &drains[0]);
	for (int turn = 0; turn < 2; turn++) {
		for (int i = 0; i < PERSISTERS; i++)
			CHECK(!pthread_create(&thread[i], NULL, persister, lines));
		for (int i = 0; i < PERSISTERS; i++)
			CHECK(!pthread_join(thread[i], NULL));
	}
	flushing_counts(&calls[1], &all[1], &drains[1]);
	CHECK(calls[1] - calls[0] == 2ul * PERSISTERS * TURNS && all[1] - all[0] == 4ul * PERSISTERS * TURNS);
	CHECK(drains[1] - drains[0] == 2ul * PERSISTERS * TURNS);
}

static void case_descriptors(void)
{
	int fd = new_file();
	char *at = observed(fd);
	int ours = seen->last.uffd;

	CHECK(close(ours) == -1 && errno == EBADF && dup2(fd, ours) == -1 && errno == EBUSY);
	CHECK(!close_range(3, ~0u, 0) && fcntl(fd, F_GETFD) == -1 && fcntl(ours, F_GETFD) >= 0);
	closefrom(3);
	at[4096] = 1;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1);
	CHECK(fcntl(ours, F_GETFD) & FD_CLOEXEC);
	/* Behind our back after all: the kernel has forgotten what was stored, so that all that there is counts. */
	CHECK(!syscall(SYS_close, ours));
	at[4096] = 2;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1);
}

static void case_exec(void)
{
	char *const words[] = {"nothing", NULL};
	int fd = new_file();
	char *at = observed(fd);

	at[0] = 1;
	CHECK(execl("/nowhere", "nothing", "more", NULL) == -1 && errno == ENOENT && written() == 1);
	CHECK(execvp("daxfs-there-is-no-such-program", words) == -1 && errno == ENOENT);
	CHECK(seen->forgotten == 2 && seen->observed == 3 && seen->dirty == 0);
	at[4096] = 1;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1);
	at[4096] = 2;
	CHECK(execlp("true", "true", NULL));
}

static void case_many(void)
{
	int fd = new_file();
	char *at = observed(fd);

	for (int i = 1; i < PAGES; i += 2)	/* 32 pieces, and more than one growth of their list */
		CHECK(!munmap(at + i * 4096, 4096));
	CHECK(pieces_count() == PAGES / 2);
	for (int i = 0; i < PAGES; i += 2)
		at[i * 4096] = 1;
	for (int i = 0; i < PAGES; i += 2)
		CHECK(!daxfs_msync(at + i * 4096, 4096, MS_SYNC) && written() == 1);
	CHECK(!munmap(at, SIZE) && pieces_count() == 0 && !kernel_owns(seen->last.uffd + 3));
}

static void case_mprotect(void)
{
	int fd = new_file();
	char *at = observed(fd);

	at[0] = at[3 * 4096] = at[4 * 4096] = 1;
	CHECK(!mprotect(at + 3 * 4096, 2 * 4096, PROT_NONE) && pieces_count() == 3);
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 3);	/* what can't be loaded, too */
	CHECK(!mprotect(at, SIZE, PROT_READ));
	CHECK(!mprotect(at + 4 * 4096, 4096, PROT_READ | PROT_WRITE));
	at[4 * 4096 + 1] = 1;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1 && !mprotect(at, SIZE, PROT_NONE));
	CHECK(!munmap(at, SIZE) && pieces_count() == 0);
}

/* On a file of tmpfs with huge pages, in the working directory: what splits one loses no store. */
static void case_huge(void)
{
	const size_t huge = 2 << 20, page = 4096;
	int fd = open("huge", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	struct daxfs_info info;
	struct daxfs_piece piece;
	char *at;

	CHECK(fd >= 0 && !ftruncate(fd, 8 * huge));
	at = daxfs_map_fd(fd, DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE, 0, 0, &info);
	CHECK(at && (uintptr_t)at % huge == 0);
	for (int i = 0; i < 8; i++)
		at[i * huge] = 1;
	CHECK(daxfs_dirty(at, 8 * huge, &piece, 1) == 1 && piece.length == 8 * huge);	/* as PMDs map it */
	CHECK(!msync(at + page, page, MS_SYNC) && written() == 512);	/* its huge page, and no other */
	CHECK(!msync(at + page, page, MS_SYNC) && written() == 0);
	CHECK(!msync(at + 2 * huge - page, 2 * page, MS_SYNC) && written() == 1024);
	CHECK(!msync(at, 8 * huge, MS_SYNC) && written() == 5 * 512);
	at[5] = at[2 * huge] = at[3 * huge] = at[4 * huge + 9] = 1;
	CHECK(!munmap(at + page, page) && written() >= 511);
	CHECK(!mprotect(at + 2 * huge + page, page, PROT_READ) && written() >= 512);
	CHECK(!madvise(at + 3 * huge + page, page, MADV_RANDOM) && written() >= 512);
	CHECK(mmap(at + 4 * huge, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + 4 * huge);
	CHECK(written() >= 512);
	at[5] = at[2 * huge] = at[2 * huge + 7 * page] = 2;	/* 4 KiB there from now on, at first all at once */
	CHECK(!msync(at, page, MS_SYNC) && written() == 1 && !msync(at + 2 * huge, huge, MS_SYNC) && written() >= 2);
	at[2 * huge] = at[2 * huge + 7 * page] = 3;
	CHECK(!msync(at + 2 * huge + page, 500 * page, MS_SYNC) && written() == 1);
	CHECK(!msync(at + 2 * huge, huge, MS_SYNC) && written() == 1);
	at[5 * huge] = 2;
	CHECK(mremap(at + 5 * huge, huge, page, 0) == at + 5 * huge && written() >= 512);
	CHECK(!daxfs_unmap(at, 8 * huge) && pieces_count() == 0);
}

/* As the daemon does: taken before a mark is, flushed later by another thread of it. */
static void count_of_daemon(uint64_t taking, uint64_t flushed)
{
	uint64_t ours[2] = {taking, flushed};
	off_t at = seen->last.slot * sizeof(struct daxfs_progress) + offsetof(struct daxfs_progress, taking);

	CHECK(seen->last.flags & DAXFS_OBSERVE_PROGRESS);
	CHECK(pwrite(seen->last.progress, ours, sizeof(ours), at) == sizeof(ours));
}

static void *flushes_soon(void *taken)
{
	usleep(20000);
	count_of_daemon((uintptr_t)taken, (uintptr_t)taken);
	return NULL;
}

static void case_taken(void)
{
	char *at = observed(new_file());
	struct pagemap_run run;
	uint64_t next, found, taken;
	pthread_t thread;

	for (int i = 0; i < PAGES; i++)
		at[i * 4096] = 1;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == PAGES);
	at[7 * 4096] = 2;
	count_of_daemon(7, 6);
	CHECK(pagemap_scan(kernel_pagemap(), (uintptr_t)at, (uintptr_t)at + SIZE, 1, &run, 1, &next) == 1);
	/* Nothing is found, and nobody says that it is durable: all is flushed. */
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == PAGES);
	count_of_daemon(7, 7);
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 0);
	/* Waits for it: 0.1 s, for which our thread may not run where the machine is busy, but not each time. */
	for (taken = 8, found = 1; found && taken < 28; taken++) {
		count_of_daemon(taken, taken - 1);
		CHECK(!pthread_create(&thread, NULL, flushes_soon, (void *)taken));
		CHECK(!msync(at, SIZE, MS_SYNC));
		found = written();
		CHECK(found == 0 || found == PAGES);
		pthread_join(thread, NULL);
	}
	CHECK(found == 0);
	count_of_daemon(2, UINT64_MAX);		/* across the end of the counters */
	CHECK(!msync(at, 4096, MS_SYNC) && written() == 1);
	CHECK(!daxfs_unmap(at, SIZE) && pieces_count() == 0);
}

static uint64_t sum_of(const struct daxfs_msyncs *m)
{
	return m->wait + m->scan + m->flush + m->drain;
}

/* Where the time of msync goes. */
static void case_times(void)
{
	char *at = observed(new_file());
	struct daxfs_msyncs before, after, zero = {0, 0, 0, 0, 0};
	struct timespec t[2];

	daxfs_msyncs(&before);
	CHECK(!memcmp(&before, &zero, sizeof(zero)));
	for (int i = 0; i < PAGES; i++)
		at[i * 4096] = 1;
	clock_gettime(CLOCK_MONOTONIC, &t[0]);
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == PAGES);
	clock_gettime(CLOCK_MONOTONIC, &t[1]);
	daxfs_msyncs(&after);
	CHECK(after.count == 1 && after.scan && after.flush && after.drain);
	CHECK(sum_of(&after) <= (uint64_t)((t[1].tv_sec - t[0].tv_sec) * 1000000000 + t[1].tv_nsec - t[0].tv_nsec));
	before = after;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 0);
	daxfs_msyncs(&after);
	CHECK(after.count == 2 && after.scan > before.scan && after.flush == before.flush);
	/* An fsync that does not end: waited for, and then all is flushed. */
	count_of_daemon(7, 6);
	before = after;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == PAGES);
	daxfs_msyncs(&after);
	CHECK(after.count == 3 && after.wait - before.wait >= 90000000 && after.flush > before.flush);
	CHECK(!daxfs_unmap(at, SIZE) && pieces_count() == 0);
}

static const struct client_case CASES[] = {
	{"msync", case_msync}, {"errors", case_errors}, {"plain", case_plain}, {"partial_munmap", case_partial_munmap},
	{"mmap_fixed", case_mmap_fixed}, {"mremap", case_mremap}, {"madvise", case_madvise}, {"fork", case_fork},
	{"signal", case_signal}, {"threads", case_threads}, {"descriptors", case_descriptors}, {"exec", case_exec},
	{"many", case_many}, {"counts", case_counts}, {"mprotect", case_mprotect}, {"turns", case_turns}, {"huge", case_huge},
	{"times", case_times}, {"taken", case_taken},
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, CASES, sizeof(CASES) / sizeof(*CASES));
}
