/* SPDX-License-Identifier: MIT
 *
 * How long own.c waits for pinned pages, against a kernel that is played here: ftruncate(2) and fallocate(2)
 * sleep, as fsdax has them sleep, until a signal comes or the page is let go. Built by test_own_pinned.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "daxfs/native/own.h"
#include "check.h"

#define PAGE 4096
#define PAGES 8

static int dax = 1, calls;
static struct timespec held;			/* how long a page stays pinned, from the next call on */

/* What own.c calls in place of libc. */

int statx(int fd, const char *path, int flags, unsigned mask, struct statx *st)
{
	(void)fd, (void)path, (void)flags, (void)mask;
	memset(st, 0, sizeof(*st));
	st->stx_attributes = dax ? STATX_ATTR_DAX : 0;
	return 0;
}

/* The sleep of the kernel's break_layouts. */
static int pinned(void)
{
	struct timespec left = held;

	calls++;
	if (!held.tv_sec && !held.tv_nsec)
		return 0;
	if (ppoll(NULL, 0, &left, NULL) < 0)
		return -1;
	held = (struct timespec){0, 0};
	return 0;
}

int ftruncate(int fd, off_t size)
{
	return pinned() ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}

int fallocate(int fd, int mode, off_t pos, off_t length)
{
	return pinned() ? -1 : (int)syscall(SYS_fallocate, fd, mode, pos, length);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static off_t size_of(int fd)
{
	struct stat st;

	CHECK(!fstat(fd, &st));
	return st.st_size;
}

/* No signal is left over, and none is let through that was not before. */
static void nothing_left(void)
{
	sigset_t set;

	CHECK(!sigpending(&set) && !sigismember(&set, SIGURG));
	CHECK(!pthread_sigmask(SIG_SETMASK, NULL, &set) && sigismember(&set, SIGURG));
	CHECK(ppoll(NULL, 0, &(struct timespec){0, 20000000}, NULL) == 0);
}

static void refused(struct filemap *f)
{
	struct own_range *o = f->own;
	double begin;

	held.tv_sec = 60;
	begin = now();
	CHECK(own_settle(o->fd, 1) == -ETXTBSY);
	CHECK(own_resize(f, 2) == -ETXTBSY && o->pages == PAGES);
	CHECK(own_resize(f, 2 * PAGES) == -ETXTBSY && o->pages == PAGES);
	CHECK(own_punch(f, 0, 3 * PAGE) == -ETXTBSY);
	CHECK(own_shorten(o->fd, 1, 0) == -ETXTBSY);
	CHECK(now() - begin >= 0.05 && now() - begin < 5);
	CHECK(size_of(o->fd) == PAGES * PAGE);
	nothing_left();
}

/* A page that is let go in time, and a signal that is none of ours, are not noticed. Again where this thread
 * did not run for so long that it was late. */
static void granted(struct filemap *f)
{
	struct own_range *o = f->own;
	int rc = -ETXTBSY;

	for (int n = 0; n < 100 && rc == -ETXTBSY; n++) {
		held = (struct timespec){0, 1000000};
		pthread_kill(pthread_self(), SIGURG);	/* blocked: it waits for the mask that own.c opens */
		calls = 0;
		rc = own_settle(o->fd, 1);
	}
	CHECK(!rc && calls >= 1 && size_of(o->fd) == PAGES * PAGE);
	rc = -ETXTBSY;
	for (int n = 0; n < 100 && rc == -ETXTBSY; n++) {
		held = (struct timespec){0, 1000000};
		rc = own_resize(f, 2);
	}
	CHECK(!rc && o->pages == 2 && size_of(o->fd) == 2 * PAGE);
	nothing_left();
}

/* No fsdax: nothing is asked, and nothing ends a call that takes longer. */
static void elsewhere(struct filemap *f)
{
	struct own_range *o = f->own;

	dax = calls = 0;
	CHECK(!own_settle(o->fd, 1) && !calls);
	held = (struct timespec){0, 50000000};
	CHECK(!own_resize(f, 1) && calls == 1);
	dax = 1;
	o->syncs = calls = 0;
	CHECK(!own_settle(o->fd, 0) && !calls);
	held = (struct timespec){0, 50000000};
	CHECK(!own_resize(f, 3) && calls == 1 && size_of(o->fd) == 3 * PAGE);
	nothing_left();
}

/* As native threads are: with all signals blocked. */
static void *run(void *arg)
{
	struct own_range o = {.fd = memfd_create("range", MFD_CLOEXEC), .syncs = 1, .pages = PAGES};
	struct filemap f = {.own = &o};
	sigset_t all;

	(void)arg;
	sigfillset(&all);
	CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL));
	CHECK(o.fd >= 0 && !syscall(SYS_ftruncate, o.fd, PAGES * PAGE));
	refused(&f);
	granted(&f);
	elsewhere(&f);
	close(o.fd);
	return NULL;
}

int main(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, run, NULL));
	CHECK(!pthread_join(thread, NULL));
	return 0;
}
