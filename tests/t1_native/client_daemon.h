/* SPDX-License-Identifier: MIT
 *
 * What tests of the client's C half share: a daemon that is made up here and counts, a mapping that it has
 * observed, what was written back, and a main function with a case for each process (CASES).
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxfs/client/daxfs.h"
#include "daxfs/client/lib.h"
#include "daxfs/native/pagemap.h"
#include "tests/t1_native/check.h"

#define PAGES 64
#define SIZE (PAGES * 4096)

/* What the daemon saw; in shared memory, for children. */
static struct seen {
	uint64_t observed, forgotten, dirty, ids;
	struct daxfs_observe last;
	struct daxfs_forget last_forget;
	pid_t observer;
} *seen;
static int answer_about, answer_observe, direct = 1, syncs;

static inline int yes(int fd)
{
	return fd >= 0;
}

static inline int about(int fd, struct daxfs_about *a)
{
	*a = (struct daxfs_about){.version = DAXFS_OBSERVE_VERSION, .direct = direct,
				  .modes = DAXFS_FAULT_KERNEL | DAXFS_FAULT_USER, .daemon = getpid(),
				  .flush = DAXFS_FLUSH_CLWB, .granularity = 1, .syncs = syncs};
	return answer_about;
}

static inline int observe(int fd, struct daxfs_observe *o)
{
	CHECK(fcntl(fd, F_GETFD) >= 0 && fcntl(o->uffd, F_GETFD) >= 0);
	CHECK(!(o->address % 4096) && o->length && !(o->length % 4096) && !(o->offset % 4096));
	if (answer_observe)
		return answer_observe;
	o->id = __atomic_add_fetch(&seen->ids, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&seen->observed, 1, __ATOMIC_RELAXED);
	seen->last = *o;
	seen->observer = getpid();
	return 0;
}

static inline int forget(int fd, const struct daxfs_forget *f)
{
	CHECK(fcntl(fd, F_GETFD) >= 0 && f->id && f->id <= seen->ids);
	__atomic_add_fetch(&seen->forgotten, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&seen->dirty, f->dirty, __ATOMIC_RELAXED);
	seen->last_forget = *f;
	return 0;
}

static inline int new_file(void)
{
	int fd = memfd_create("client", MFD_CLOEXEC);

	CHECK(fd >= 0 && !ftruncate(fd, SIZE));
	return fd;
}

static inline char *observed(int fd)
{
	struct daxfs_info info;
	char *at = daxfs_map_fd(fd, DAXFS_MAP_WRITE | DAXFS_MAP_PTE | DAXFS_MAP_REQUIRE, 0, 0, &info);

	CHECK(at && info.observed && !info.why && info.offset == 0 && strcmp(info.flush, "msync"));
	return at;
}

/* Pages whose lines were written back since the last call. */
static inline uint64_t written(void)
{
	static uint64_t before;
	uint64_t calls, lines, drains, now;

	flushing_counts(&calls, &lines, &drains);
	CHECK(lines % 64 == 0);
	now = lines / 64 - before;
	before = lines / 64;
	return now;
}

static inline uint64_t dirty_pages(const void *at, size_t length)
{
	struct daxfs_piece piece[PAGES];
	ssize_t n = daxfs_dirty(at, length, piece, PAGES);
	uint64_t pages = 0;

	CHECK(n >= 0);
	for (ssize_t i = 0; i < n; i++)
		pages += piece[i].length / 4096;
	return pages;
}

struct client_case {
	const char *name;
	void (*run)(void);
};

static inline int run_case(int argc, char **argv, const struct client_case *cases, size_t n)
{
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(seen != MAP_FAILED && argc == 2);
	client_daemon = (struct client_daemon){yes, about, observe, forget};
	for (size_t i = 0; i < n; i++)
		if (!strcmp(cases[i].name, argv[1])) {
			cases[i].run();
			return 0;
		}
	fprintf(stderr, "no such case: %s\n", argv[1]);
	return 2;
}
