/* SPDX-License-Identifier: MIT
 *
 * What programs do that a library in them could break: calls that drop marks of stores, mappings that can't
 * be loaded from or end behind their file, few descriptors, handlers of SIGBUS, daemons that come and go.
 *
 * Each case is a process of its own: client_breaks CASE, beside client_table.c.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "tests/t1_native/client_daemon.h"

#define HUGE ((size_t)2 << 20)
#define MADV_DONTNEED_LOCKED_ 24	/* linux/mman.h of 5.18 */
#define MADV_GUARD_INSTALL_ 102		/* of 6.13; files since 6.15 */

static void taken_by_daemon(uint64_t taking, uint64_t flushed)
{
	uint64_t ours[2] = {taking, flushed};
	off_t at = seen->last.slot * sizeof(struct daxfs_progress) + offsetof(struct daxfs_progress, taking);

	CHECK(pwrite(seen->last.progress, ours, sizeof(ours), at) == sizeof(ours));
}

static long blocks(int fd)
{
	struct stat st;

	CHECK(!fstat(fd, &st));
	return st.st_blocks / 8;
}

static char *mapped(int fd, size_t length, int prot)
{
	char *at = mmap(NULL, length, prot, MAP_SHARED, fd, 0);

	CHECK(at != MAP_FAILED && pieces_count());
	return at;
}

/* Advice that takes pages out of the page table: what was stored is written back before, or kept. */
static void case_advice(void)
{
	int fd = new_file();
	char *at = observed(fd);

	at[4096] = 1;
	CHECK(!madvise(at, SIZE, MADV_DONTNEED_LOCKED_) && !msync(at, SIZE, MS_SYNC) && written() == 1);
	/* The kernel would try for ever to put a guard where a page is protected. */
	at[2 * 4096] = 1;
	CHECK(madvise(at + 2 * 4096, 4096, MADV_GUARD_INSTALL_) == -1 && errno == EINVAL);
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1);
}

/* A mapping that begins without any access, as with mprotect(2) later. */
static void case_no_access(void)
{
	int fd = new_file();
	char *at = mapped(fd, SIZE, PROT_NONE);
	char *space = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(space != MAP_FAILED && pwrite(fd, "x", 1, 0) == 1);
	taken_by_daemon(7, 6);
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1);	/* all that is there counts: and no SIGSEGV */
	taken_by_daemon(7, 7);
	CHECK(!mprotect(at, SIZE, PROT_READ | PROT_WRITE));
	at[4096] = 1;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() >= 1 && !msync(at, SIZE, MS_SYNC) && written() == 0);
	/* And one that has none any more when it is moved. */
	at[2 * 4096] = 1;
	CHECK(!mprotect(at, SIZE, PROT_NONE) && written() == 0);
	at = mremap(at, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, space);
	CHECK(at != MAP_FAILED && written() >= 1);
	taken_by_daemon(9, 8);
	CHECK(!msync(at, SIZE, MS_SYNC) && written() >= 3);
}

/* What can't be loaded from is mapped elsewhere to write it back. Where that fails nothing was written back, so
 * msync must not say so, and the marks must stay. */
static void case_no_room(void)
{
	struct rlimit none = {0, RLIM_INFINITY}, before;
	int fd = new_file();
	char *at = observed(fd);

	at[4096] = 1;
	CHECK(!mprotect(at, SIZE, PROT_NONE) && !getrlimit(RLIMIT_AS, &before) && !setrlimit(RLIMIT_AS, &none));
	CHECK(msync(at, SIZE, MS_SYNC) == -1 && errno == ENOMEM && written() == 0);
	CHECK(!setrlimit(RLIMIT_AS, &before));
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 1);
}

/* Write-backs of all pages touch neither what is behind the end of the file nor holes. */
static void case_all(void)
{
	int fd = new_file();
	char *at;

	CHECK(!ftruncate(fd, SIZE / 2 + 100));
	at = mapped(fd, SIZE, PROT_READ | PROT_WRITE);
	at[4096] = at[9 * 4096] = at[SIZE / 2] = 1;
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 3 && blocks(fd) == 3);
	taken_by_daemon(7, 6);
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 3 && blocks(fd) == 3);
	taken_by_daemon(7, 7);
	at[2 * 4096] = 1;
	CHECK(!syscall(SYS_close, seen->last.uffd));
	CHECK(!msync(at, SIZE, MS_SYNC) && written() == 4 && blocks(fd) == 4);
	/* Nor where the file is another one meanwhile, as after a revocation. */
	CHECK(!ftruncate(fd, 0) && !msync(at, SIZE, MS_SYNC) && written() == 0 && blocks(fd) == 0);
}

/* Before and after a call for a part of 2 MiB all of these are written back: not their holes. */
static void case_edges(void)
{
	char *space = mmap(NULL, 4 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at;
	int fd = new_file();

	CHECK(!ftruncate(fd, 2 * HUGE));
	at = (char *)(((uintptr_t)space + HUGE - 1) & ~(HUGE - 1));
	CHECK(mmap(at, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at);
	at[0] = at[HUGE + 5 * 4096] = at[2 * HUGE - 1] = 1;
	CHECK(!munmap(at + 100 * 4096, 4096) && written() == 1 && blocks(fd) == 3);
	CHECK(!mprotect(at + HUGE, 4096, PROT_READ) && written() == 4 && blocks(fd) == 3);	/* found, and whole */
	CHECK(!munmap(at, HUGE + 4096) && written() >= 1 && blocks(fd) == 3);
	CHECK(!msync(at + HUGE + 4096, HUGE - 4096, MS_SYNC) && blocks(fd) == 3);
}

/* A program that maps files and closes them has its descriptors for other things. */
static void case_few_descriptors(void)
{
	struct rlimit few = {64, 64};
	int fds[40], i, open_, more;

	CHECK(!setrlimit(RLIMIT_NOFILE, &few));
	for (i = 0; i < 40; i++) {
		int fd = new_file();

		CHECK(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED && !close(fd));
	}
	CHECK(pieces_count() >= 10);
	for (open_ = 0; open_ < 40; open_++)
		if ((fds[open_] = dup(2)) < 0)
			break;
	CHECK(open_ >= 36);
	for (more = 0; more < open_; more++)
		close(fds[more]);
}

static long pages_of_process(void)
{
	FILE *statm = fopen("/proc/self/statm", "r");
	long pages;

	CHECK(statm && fscanf(statm, "%ld", &pages) == 1 && !fclose(statm));
	return pages;
}

/* What a program has unmapped is free for it to grow into: nothing of ours is put there. */
static void case_place(void)
{
	char *at = observed(new_file());
	long before;

	at[4096] = 1;
	CHECK(pages_of_process() > 0 && !munmap(at + SIZE / 2, SIZE / 2));
	before = pages_of_process();
	CHECK(mremap(at, SIZE / 2, SIZE / 2, 0) == at && pages_of_process() == before);
	CHECK(!mprotect(at, 4096, PROT_READ) && !madvise(at, 4096, MADV_DONTNEED));
	CHECK(!msync(at, SIZE / 2, MS_SYNC) && pages_of_process() == before);
}

/* Unmapped behind our back in part, and something else mapped there: of the rest nothing is forgotten. */
static void case_stale(void)
{
	int fd = new_file(), other = new_file();
	char *at = observed(fd);

	CHECK(!syscall(SYS_munmap, at, SIZE / 2));
	CHECK(mmap(at, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, other, 0) == at);
	CHECK(seen->forgotten == 1 && seen->last_forget.address == (uintptr_t)at && seen->last_forget.length == 4096);
	CHECK(seen->last_forget.dirty == 1);
}

/* -- SIGBUS in a write-back: a page that another program truncates away ----------------------------- */

#define LARGE ((size_t)64 << 20)
static sigjmp_buf out;
static char *large;
static int large_fd, what;
static volatile int done_;

static void on_sigbus(int number)
{
	int status;
	pid_t child;

	if (what == 0)
		_exit(42);
	if (what == 1) {	/* as programs that report crashes do */
		child = fork();
		if (!child)
			_exit(41);
		CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 41);
		_exit(42);
	}
	siglongjmp(out, 1);
}

static void *truncates(void *delay)
{
	usleep((uintptr_t)delay);
	CHECK(!ftruncate(large_fd, 0));
	return NULL;
}

static void *syncs_too(void *unused)
{
	CHECK(!msync(large, 4096, MS_SYNC));
	done_ = 1;
	return NULL;
}

/* Returns where no SIGBUS came. */
static void hit(uintptr_t delay)
{
	pthread_t thread;

	large_fd = new_file();
	CHECK(!ftruncate(large_fd, LARGE));
	large = mapped(large_fd, LARGE, PROT_READ | PROT_WRITE);
	memset(large, 1, LARGE);
	CHECK(!pthread_create(&thread, NULL, truncates, (void *)delay));
	if (sigsetjmp(out, 1)) {
		pthread_join(thread, NULL);
		/* The handler left msync(2): this thread goes on, and so do others from then on. */
		CHECK(!msync(large, 4096, MS_SYNC));
		CHECK(!pthread_create(&thread, NULL, syncs_too, NULL) && !pthread_join(thread, NULL) && done_);
		CHECK(!msync(large, LARGE, MS_SYNC) && !munmap(large, LARGE));
		exit(42);
	}
	msync(large, LARGE, MS_SYNC);
	pthread_join(thread, NULL);
	munmap(large, LARGE);
	close(large_fd);
}

static void case_sigbus(void)
{
	for (what = 0; what < 3; what++) {
		int status = 0;
		pid_t child = fork();

		if (!child) {
			CHECK(signal(SIGBUS, on_sigbus) != SIG_ERR);
			alarm(20);	/* a deadlock ends here: signals wait in it, but not for who only waits */
			for (int i = 0; i < 200; i++)
				hit(50 * (i % 40));
			_exit(3);
		}
		for (int i = 0; i < 250 && waitpid(child, &status, WNOHANG) == 0; i++) {
			usleep(100000);
			if (i == 249)
				kill(child, SIGKILL);
		}
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 42)
			fprintf(stderr, "handler %d: status %d\n", what, status);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
	}
}

/* fault=user, and the daemon takes no more: a child that is refused has faults that the kernel answers. */
static void case_refused_child(void)
{
	struct daxfs_info info;
	int fd = new_file(), status = 0;
	volatile char *at;
	pid_t child;

	if (kernel_ready(DAXFS_FAULT_USER))
		return;		/* not permitted */
	at = daxfs_map_fd(fd, DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE | DAXFS_MAP_USER, 0, 0, &info);
	CHECK(at && info.observed);
	answer_observe = -EBUSY;
	child = fork();
	if (!child) {
		at[4096] = 1;
		_exit(0);
	}
	for (int t = 0; t < 100 && !waitpid(child, &status, WNOHANG); t++)
		usleep(100000);
	if (kill(child, SIGKILL))
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	else
		CHECK(!"the child waits for an answer");
	_exit(0);
}

static void gone(int32_t pid)
{
	done_ = pid;
}

/* A program outlives any number of daemons, and sees the end of each. */
static void case_daemons(void)
{
	CHECK(!kernel_ready(DAXFS_FAULT_KERNEL));
	for (int i = 0; i < 40; i++) {
		pid_t child = fork();
		sigset_t old;
		int r;

		if (!child)
			for (;;)
				pause();
		client_lock(&old);
		r = kernel_watch(child, gone);
		client_unlock(&old);
		CHECK(r == 0 && !kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
		for (int t = 0; done_ != child; t++) {
			CHECK(t < 5000);
			usleep(1000);
		}
		for (int t = 0; kernel_threads() != 1; t++) {
			CHECK(t < 5000);
			usleep(1000);
		}
	}
}

static const struct client_case CASES[] = {
	{"advice", case_advice}, {"no_access", case_no_access}, {"no_room", case_no_room}, {"all", case_all},
	{"edges", case_edges}, {"few_descriptors", case_few_descriptors}, {"place", case_place}, {"stale", case_stale},
	{"sigbus", case_sigbus}, {"refused_child", case_refused_child}, {"daemons", case_daemons},
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, CASES, sizeof(CASES) / sizeof(*CASES));
}
