/* SPDX-License-Identifier: MIT
 *
 * The preload shim of `daxfs run`: libc's functions that map, unmap and write back, so that a program's own
 * shared writable mappings of DAX files are observed. libdaxfs is in it, too: a program that uses both
 * has one list of mappings, as this library's symbols come first.
 *
 * What is not ours goes to the kernel as it came: a file's mmap costs one statx(2) more if it is shared and
 * writable, munmap, mremap, msync and madvise a look into a list in memory. errno of calls that succeed
 * stays.
 *
 * Limits: seen is what is called by symbol. System calls made by hand, also inside libc (a map of its
 * own stdio or loader), vfork children and statically linked programs are not; for those the daemon takes
 * each page of the file for dirty, as without the shim, unless the same open file is mapped through the
 * shim, too. A page that one thread stores to while another unmaps or drops it is that program's race.
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS	/* with it mmap is another name of mmap64; both are wanted here */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daxfs/client/daxfs.h"
#include "daxfs/client/lib.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_DONTNEED_LOCKED	/* 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL	/* 6.13 */
#define MADV_GUARD_INSTALL 102
#endif
#define HUGE_PAGE ((uintptr_t)2 << 20)
#define PARTS 64	/* pieces of one mremap; more is ENOMEM */
#define UP(x) (((uintptr_t)(x) + CLIENT_PAGE - 1) & ~(CLIENT_PAGE - 1))

/* Is any observed piece in [start, start + length)? No lock, no system call. */
static int is_ours(uintptr_t start, size_t length)
{
	struct piece p;
	uintptr_t end = start + UP(length);

	while (start < end && pieces_next(start, end, &p)) {
		if (p.id)
			return 1;
		start = p.end;
	}
	return 0;
}

static uintptr_t real_mmap(uintptr_t addr, size_t length, int prot, int flags, int fd, off64_t offset)
{
	return syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}

/* -- mmap, munmap, mremap -- */

/* A mapping that may become one with stores: mprotect(2) can add PROT_WRITE if the descriptor was open
 * for it. */
static int wants_observing(int flags, int fd)
{
	int shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;

	return shared && fd >= 0 && !(flags & MAP_ANONYMOUS) && client_daemon.is_daxfs(fd)
		&& (syscall(SYS_fcntl, fd, F_GETFL) & O_ACCMODE) == O_RDWR;
}

/* Under the lock: the mapping is there. 0, or -errno where it must not stay. */
static int observe_new(uintptr_t at, size_t length, int prot, int fd, off64_t offset)
{
	const char *why;
	int hidden = prot & (PROT_READ | PROT_WRITE) ? 0 : BEGIN_HIDDEN;
	int r = client_attach(at, at + UP(length), fd, offset, prot | PROT_READ | PROT_WRITE,
			      BEGIN_AS_IS | hidden, client_mode(), &why);

	return r == -ENOMEM ? r : 0;	/* otherwise it is plain, and the daemon knows */
}

static uintptr_t map_over(uintptr_t addr, size_t length, int prot, int flags, int fd, off64_t offset,
			  int observed)
{
	uintptr_t end = addr + UP(length), at;
	int fixed = flags & MAP_FIXED && !(flags & MAP_FIXED_NOREPLACE & ~MAP_FIXED), error = 0;
	sigset_t old;
	int cuts = 0;

	client_lock(&old);
	if (fixed && pieces_reserve(4)) {
		client_unlock(&old);
		errno = ENOMEM;
		return (uintptr_t)MAP_FAILED;
	}
	if (fixed) {
		client_forget(addr, end, 0);
		if ((cuts = client_cuts(addr, end)))
			client_turns_take();
	}
	at = real_mmap(addr, length, prot, flags, fd, offset);
	if (at == (uintptr_t)MAP_FAILED) {
		error = errno;
		if (fixed)
			client_again(addr, end);
	} else if (fixed) {
		pieces_cut(addr, end);
	}
	if (cuts) {
		client_flush_edges(addr, end);
		client_turns_leave();
	}
	if (!error && observed && (error = -observe_new(at, length, prot, fd, offset))) {
		syscall(SYS_munmap, at, length);
		at = (uintptr_t)MAP_FAILED;
	}
	client_unlock(&old);
	if (error)
		errno = error;
	return at;
}

static void *map(void *addr, size_t length, int prot, int flags, int fd, off64_t offset)
{
	int error = errno, observed = wants_observing(flags, fd);
	uintptr_t at;

	errno = error;
	if (!observed && !(flags & MAP_FIXED && is_ours((uintptr_t)addr, length)))
		return (void *)real_mmap((uintptr_t)addr, length, prot, flags, fd, offset);
	at = map_over((uintptr_t)addr, length, prot, flags, fd, offset, observed);
	if (at != (uintptr_t)MAP_FAILED)
		errno = error;
	return (void *)at;
}

CLIENT_API void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return map(addr, length, prot, flags, fd, offset);
}

CLIENT_API void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off64_t offset)
{
	return map(addr, length, prot, flags, fd, offset);
}

CLIENT_API int munmap(void *addr, size_t length)
{
	int error = errno, r;

	if ((uintptr_t)addr % CLIENT_PAGE || !is_ours((uintptr_t)addr, length))
		return syscall(SYS_munmap, addr, length);
	r = client_unmap((uintptr_t)addr, length);
	if (!r)
		errno = error;
	return r;
}

/* The observed parts of [start, end), in order; -1: more than there is room for. */
static int parts_of(uintptr_t start, uintptr_t end, struct piece *part)
{
	struct piece p;
	int n = 0;

	for (; start < end && pieces_next(start, end, &p); start = p.end) {
		if (!p.id)
			continue;
		if (n == PARTS)
			return -1;
		if (p.start < start) {
			p.offset += start - p.start;
			p.start = start;
		}
		if (p.end > end)
			p.end = end;
		part[n++] = p;
	}
	return n;
}

/* The parts of [old, old_end) are at `at` now; the last one has grown or shrunk with the whole. */
static void parts_moved(const struct piece *part, int n, uintptr_t old, uintptr_t old_end, uintptr_t at,
			size_t length)
{
	int i;

	for (i = 0; i < n; i++) {
		uintptr_t start = at + (part[i].start - old), end = at + (part[i].end - old);

		if (part[i].end >= old_end || end > at + length)
			end = at + length;
		if (start < end)	/* where it can't be observed the daemon was told */
			client_moved(&part[i], start, end);
	}
}

static void *remap(uintptr_t old, size_t old_size, size_t new_size, int flags, uintptr_t wanted)
{
	/* Of old size 0 a second mapping is made, and the first stays. */
	uintptr_t old_end = old + (old_size ? UP(old_size) : CLIENT_PAGE), at;
	int stays = flags & MREMAP_DONTUNMAP, fixed = flags & MREMAP_FIXED, error = 0, n, i, cuts;
	struct piece part[PARTS];
	sigset_t mask;

	client_lock(&mask);
	n = parts_of(old, old_end, part);
	if (n < 0 || pieces_reserve(2 * PARTS + 8)) {
		client_unlock(&mask);
		errno = ENOMEM;
		return MAP_FAILED;
	}
	for (i = 0; i < n; i++)		/* let go of only after the copies hold them */
		kernel_share(part[i].holder);
	if (old_size)
		client_forget(old, old_end, 0);
	if (fixed)
		client_forget(wanted, wanted + UP(new_size), 0);
	cuts = client_cuts(old, old_end) || client_cuts(old, old + UP(new_size))
		|| (fixed && client_cuts(wanted, wanted + UP(new_size)));
	if (cuts)
		client_turns_take();
	at = syscall(SYS_mremap, old, old_size, new_size, flags, wanted);
	if (at == (uintptr_t)MAP_FAILED)
		error = errno;
	if (fixed && !error)
		pieces_cut(wanted, wanted + UP(new_size));
	else if (fixed)
		client_again(wanted, wanted + UP(new_size));
	if (old_size && (error || stays))
		client_again(old, old_end);
	else if (old_size)
		pieces_cut(old, old_end);
	if (cuts) {
		client_flush_edges(old, old_end);
		client_flush_edges(old + UP(new_size), wanted);
		client_flush_edges(wanted, wanted + UP(new_size));
		client_turns_leave();
	}
	if (!error)
		parts_moved(part, n, old, old_end, at, UP(new_size));
	for (i = 0; i < n; i++)
		kernel_let_go(part[i].holder);
	client_unlock(&mask);
	if (error)
		errno = error;
	return (void *)at;
}

CLIENT_API void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	uintptr_t start = (uintptr_t)old, wanted = 0;
	int error = errno;
	void *at;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_list rest;

		va_start(rest, flags);
		wanted = (uintptr_t)va_arg(rest, void *);
		va_end(rest);
	}
	if (start % CLIENT_PAGE || (!is_ours(start, old_size ? old_size : 1)
				    && !(flags & MREMAP_FIXED && is_ours(wanted, new_size))))
		return (void *)syscall(SYS_mremap, old, old_size, new_size, flags, wanted);
	at = remap(start, old_size, new_size, flags, wanted);
	if (at != MAP_FAILED)
		errno = error;
	return at;
}

/* -- msync, madvise -- */

CLIENT_API int msync(void *addr, size_t length, int flags)
{
	pthread_testcancel();
	if (!is_ours((uintptr_t)addr, length))
		return syscall(SYS_msync, addr, length, flags);
	return daxfs_msync(addr, length, flags);
}

/* Drops page table entries, and what they say of stores with them. */
static int drops_marks(int advice)
{
	return advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED || advice == MADV_PAGEOUT
		|| advice == MADV_COLD || advice == MADV_COLLAPSE;
}

/* MADV_DONTNEED, or that with _LOCKED, of what is not observed in [start, end). Of a shared mapping it shows
 * in nothing but RSS. */
static int drop_gaps(uintptr_t start, uintptr_t end, int advice)
{
	struct piece p;
	int r = 0;

	while (start < end && !r) {
		uintptr_t to = end, from = start;

		start = end;
		if (pieces_next(from, end, &p)) {
			start = p.end;
			to = p.id ? p.start : p.end < end ? p.end : end;
		}
		if (to > from)
			r = syscall(SYS_madvise, from, to - from, advice);
	}
	return r;
}

/* A call for a part of a huge page, which splits it, or one that hides pages. Nothing is mapped or
 * unmapped meanwhile. */
static int change(long number, uintptr_t start, size_t length, int argument)
{
	uintptr_t end = start + UP(length), low = start & ~(HUGE_PAGE - 1);
	uintptr_t high = (end + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
	int r, error, cuts;
	sigset_t old;

	client_lock(&old);
	if ((cuts = client_cuts(start, end))) {
		client_forget(low, high, 1);	/* fsync, too, shall take these huge pages for dirty */
		client_turns_take();
	}
	r = syscall(number, start, length, argument);
	error = errno;
	if (!r && number == SYS_mprotect)
		client_hide(start, end, !(argument & (PROT_READ | PROT_WRITE)));
	if (cuts) {
		client_flush_edges(start, end);
		client_turns_leave();
		client_again(low, high);
	}
	client_unlock(&old);
	errno = error;
	return r;
}

CLIENT_API int madvise(void *addr, size_t length, int advice)
{
	uintptr_t start = (uintptr_t)addr, end = start + UP(length);
	int error = errno;

	if (start % CLIENT_PAGE || !is_ours(start, length))
		return syscall(SYS_madvise, addr, length, advice);
	if (advice == MADV_GUARD_INSTALL) {
		/* As before 6.15 for all files: with our protection 6.18 tries for ever (signals get through). */
		errno = EINVAL;
		return -1;
	}
	if (drops_marks(advice))
		client_sync(start, end);
	if (advice == MADV_REMOVE)	/* splits huge pages of the file, and with that empties all page tables */
		client_sync(start & ~(HUGE_PAGE - 1), (end + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	errno = error;
	/* Left where they are: what another thread stores meanwhile would be dropped unseen. */
	if (advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED)
		return drop_gaps(start, end, advice);
	if (client_cuts(start, end))
		return change(SYS_madvise, start, length, advice);
	return syscall(SYS_madvise, addr, length, advice);
}

/* Is any observed piece there whose pages are hidden, or else would be? */
static int hides(uintptr_t start, uintptr_t end, int hidden)
{
	struct piece p;

	for (; start < end && pieces_next(start, end, &p); start = p.end)
		if (p.id && p.hidden != hidden)
			return 1;
	return 0;
}

CLIENT_API int mprotect(void *addr, size_t length, int prot)
{
	uintptr_t start = (uintptr_t)addr, end = start + UP(length);

	if (start % CLIENT_PAGE || !is_ours(start, length)
	    || (!client_cuts(start, end) && !hides(start, end, !(prot & (PROT_READ | PROT_WRITE)))))
		return syscall(SYS_mprotect, addr, length, prot);
	return change(SYS_mprotect, start, length, prot);
}

/* -- exec, exit: the mappings go, and nobody is there to ask for what was stored through them -- */

static int leave(void)
{
	struct piece p;
	sigset_t old;

	if (!pieces_next(0, UINTPTR_MAX, &p) || !kernel_is_owner())	/* none, or a child of vfork(2) */
		return 0;
	client_lock(&old);
	client_forget(0, UINTPTR_MAX, kernel_threads() > 1);
	client_unlock(&old);
	return 1;
}

static int stay(int left, int r)
{
	int error = errno;
	sigset_t old;

	if (left) {
		client_lock(&old);
		client_again(0, UINTPTR_MAX);
		client_unlock(&old);
	}
	errno = error;
	return r;
}

typedef int (*exec_function)(const char *, char *const *, char *const *);
typedef int (*short_exec_function)(const char *, char *const *);

CLIENT_API int execve(const char *path, char *const argv[], char *const envp[])
{
	int left = leave();

	return stay(left, syscall(SYS_execve, path, argv, envp));
}

CLIENT_API int execveat(int dir, const char *path, char *const argv[], char *const envp[], int flags)
{
	int left = leave();

	return stay(left, syscall(SYS_execveat, dir, path, argv, envp, flags));
}

CLIENT_API int fexecve(int fd, char *const argv[], char *const envp[])
{
	int left = leave();

	return stay(left, syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH));
}

CLIENT_API int execv(const char *path, char *const argv[])
{
	int left = leave();

	return stay(left, syscall(SYS_execve, path, argv, environ));
}

CLIENT_API int execvpe(const char *file, char *const argv[], char *const envp[])
{
	exec_function real = (exec_function)dlsym(RTLD_NEXT, "execvpe");
	int left = leave();

	return stay(left, real(file, argv, envp));
}

CLIENT_API int execvp(const char *file, char *const argv[])
{
	short_exec_function real = (short_exec_function)dlsym(RTLD_NEXT, "execvp");
	int left = leave();

	return stay(left, real(file, argv));
}

/* The words of execl and its like, up to NULL, as an array on the caller's stack. */
#define COLLECT(argv, first, rest) \
	size_t count_ = 1; \
	va_list copy_; \
	va_start(rest, first); \
	va_copy(copy_, rest); \
	while (va_arg(copy_, char *)) \
		count_++; \
	va_end(copy_); \
	char *argv[count_ + 1]; \
	argv[0] = (char *)(first); \
	for (size_t i_ = 1; i_ <= count_; i_++) \
		argv[i_] = va_arg(rest, char *)

CLIENT_API int execl(const char *path, const char *arg, ...)
{
	va_list rest;

	COLLECT(argv, arg, rest);
	va_end(rest);
	return execv(path, argv);
}

CLIENT_API int execlp(const char *file, const char *arg, ...)
{
	va_list rest;

	COLLECT(argv, arg, rest);
	va_end(rest);
	return execvp(file, argv);
}

CLIENT_API int execle(const char *path, const char *arg, ...)
{
	va_list rest;
	char *const *envp;

	COLLECT(argv, arg, rest);
	envp = va_arg(rest, char *const *);
	va_end(rest);
	return execve(path, argv, envp);
}

/* Without exit(3)'s destructors, as children of fork(2) end: the daemon would take all for dirty. */
CLIENT_API void _exit(int status)
{
	leave();
	for (;;)
		syscall(SYS_exit_group, status);
}

CLIENT_API void _Exit(int status)
{
	_exit(status);
}

/* -- descriptors: programs that close all there are must not end our tracking -- */

CLIENT_API int close(int fd)
{
	pthread_testcancel();	/* libc's is a cancellation point, too */
	if (kernel_owns(fd)) {
		errno = EBADF;
		return -1;
	}
	return syscall(SYS_close, fd);
}

CLIENT_API int close_range(unsigned first, unsigned last, int flags)
{
	unsigned fd;

	if (first > last || flags & CLOSE_RANGE_CLOEXEC)
		return syscall(SYS_close_range, first, last, flags);
	for (fd = first; fd <= last && fd < 65536; fd++)
		if (kernel_owns(fd)) {
			if (fd > first && syscall(SYS_close_range, first, fd - 1, flags))
				return -1;
			first = fd + 1;
		}
	return first <= last ? syscall(SYS_close_range, first, last, flags) : 0;
}

CLIENT_API void closefrom(int low)
{
	close_range(low < 0 ? 0 : low, ~0u, 0);
}

CLIENT_API int dup2(int old, int new)
{
	if (kernel_owns(new)) {
		errno = EBUSY;
		return -1;
	}
	return syscall(SYS_dup2, old, new);
}

CLIENT_API int dup3(int old, int new, int flags)
{
	if (kernel_owns(new)) {
		errno = EBUSY;
		return -1;
	}
	return syscall(SYS_dup3, old, new, flags);
}
