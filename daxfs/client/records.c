/* SPDX-License-Identifier: MIT
 *
 * The page faults of this process, as the kernel records them (perf_event_open(2)), and whether the records
 * are all there are.
 *
 * A fault is recorded after it was handled and before its store runs. So who is ordered behind a store finds
 * the record of the fault that made its page writable. Not all faults have one: those of get_user_pages
 * (O_DIRECT), those of system calls where the kernel hides them from us (perf_event_paranoid), those of
 * threads or CPUs that nothing was opened for, those that found no room in the ring. But all of them count in
 * getrusage(2), and a fault counts there before it is recorded. So, in this order: take the records, read the
 * counts. If counts less records are what they were, no fault that had counted by then was without record.
 *
 * What they were has to be true, for the other side: a thread that had counted and not recorded then would
 * later make up for one that is missing. While there are other threads that is excluded by time: the
 * difference has to be the same for some looks and 0.1 s (`settling`) before anything rests on it. In
 * between are a few instructions of the kernel.
 *
 * Limits: stores that others make for us (ptrace(2), vfork(2) children, threads of the kernel) are faults of
 * theirs. Nothing here locks: candidates.c does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "daxfs/client/lib.h"

#define CPUS 64			/* each costs two events, a ring and a descriptor, and each new thread two events */
#define DESCRIPTORS 512
#define TRIES 8			/* other threads fault meanwhile */
#define SETTLE_LOOKS 4
#define SETTLE_NS 100000000u

/* struct perf_event_attr, its first version; inherit_thread (5.13) is in no header that is built with. */
struct attr {
	uint32_t type, size;
	uint64_t config, sample_period, sample_type, read_format, flags;
	uint32_t wakeup_watermark, pad;
	uint64_t unused;
};
_Static_assert(sizeof(struct attr) == PERF_ATTR_SIZE_VER0, "struct perf_event_attr");
#define INHERIT (UINT64_C(1) << 1)
#define EXCLUDE_KERNEL (UINT64_C(1) << 5)
#define EXCLUDE_HV (UINT64_C(1) << 6)
#define WATERMARK (UINT64_C(1) << 14)
#define INHERIT_THREAD (UINT64_C(1) << 35)

static const unsigned RING_PAGES[] = {32, 8};	/* the second where memory that may be locked is short */

static struct ring {
	struct perf_event_mmap_page *page;
	const char *data;
	uint64_t mask;
} rings[CPUS];
static int fds[DESCRIPTORS], n_fds, n_rings;
static enum { NEW, ON, OFF } state;
static const char *why = "nothing large was written back yet";
static uint64_t taken;		/* records */
static uint64_t missing;	/* counted faults without one, until the last look */
static unsigned settling;
static uint64_t settling_since;
static uint64_t hidden;		/* EXCLUDE_KERNEL where faults of system calls are not ours to see */

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

/* -- opening -- */

/* An event of thread `tid` (0: this one) while it is on `cpu`: its descriptor or -errno. */
static int event(int config, int tid, int cpu)
{
	struct attr a = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(a), .config = config, .sample_period = 1,
		.sample_type = PERF_SAMPLE_ADDR, .wakeup_watermark = ~0u,
		.flags = INHERIT | INHERIT_THREAD | EXCLUDE_HV | WATERMARK | hidden,
	};
	int fd = syscall(SYS_perf_event_open, &a, tid, cpu, -1, PERF_FLAG_FD_CLOEXEC);

	if (fd < 0 && !hidden && (errno == EACCES || errno == EPERM)) {
		hidden = EXCLUDE_KERNEL;
		return event(config, tid, cpu);
	}
	return fd < 0 ? -errno : fd;
}

static int keep(int fd)
{
	if (n_fds == DESCRIPTORS) {
		syscall(SYS_close, fd);
		return -EMFILE;
	}
	fd = kernel_high(fd);
	if (fd < 0)
		return fd;
	fds[n_fds++] = fd;
	return 0;
}

/* Both events of a thread on the CPU of ring r, into that ring. The descriptor of the one that has the ring
 * is `first`; -1: this one is to have it, and its descriptor is returned. 0 or more, or -errno. */
static int events(int tid, int cpu, struct ring *r, int first, unsigned pages)
{
	int minor = event(PERF_COUNT_SW_PAGE_FAULTS_MIN, tid, cpu), major = -1, rc = 0;

	if (minor < 0)
		return minor;
	if (first < 0) {
		long at = syscall(SYS_mmap, NULL, (pages + 1) * CLIENT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
				  minor, 0);

		rc = at == -1 ? -errno : 0;
		if (!rc) {
			r->page = (void *)at;
			r->data = (const char *)at + CLIENT_PAGE;
			r->mask = pages * CLIENT_PAGE - 1;
			n_rings++;
		}
	} else if (syscall(SYS_ioctl, minor, PERF_EVENT_IOC_SET_OUTPUT, first)) {
		rc = -errno;
	}
	if (!rc) {
		major = event(PERF_COUNT_SW_PAGE_FAULTS_MAJ, tid, cpu);
		rc = major < 0 ? major : 0;
	}
	if (!rc && syscall(SYS_ioctl, major, PERF_EVENT_IOC_SET_OUTPUT, first < 0 ? minor : first))
		rc = -errno;
	if (!rc) {
		rc = keep(major);
		major = -1;
	}
	if (major >= 0)
		syscall(SYS_close, major);
	if (!rc && first < 0)
		return minor;
	if (!rc)
		return keep(minor);
	syscall(SYS_close, minor);
	return rc;
}

/* The numbers of the CPUs that are online; more than CPUS: -E2BIG. */
static int online(int *cpu)
{
	int fd = syscall(SYS_openat, AT_FDCWD, "/sys/devices/system/cpu/online", O_RDONLY | O_CLOEXEC, 0), n = 0;
	long length, low, high;
	char text[1024], *at = text;

	length = fd < 0 ? -1 : syscall(SYS_read, fd, text, sizeof(text) - 1);
	if (fd >= 0)
		syscall(SYS_close, fd);
	if (length <= 0)
		return -ENOENT;
	text[length] = 0;
	while (*at >= '0' && *at <= '9') {
		low = high = strtol(at, &at, 10);
		if (*at == '-')
			high = strtol(at + 1, &at, 10);
		for (; low <= high; low++) {
			if (n == CPUS)
				return -E2BIG;
			cpu[n++] = low;
		}
		at += *at == ',';
	}
	return n;
}

/* The other threads of the process; none where they are more than `room`. */
static int others(int *tid, int room)
{
	struct entry { uint64_t ino; int64_t next; uint16_t size; uint8_t type; char name[]; } *entry;
	int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), n = 0;
	_Alignas(8) char text[2048];
	int own = syscall(SYS_gettid), number;
	long length;

	while (fd >= 0 && (length = syscall(SYS_getdents64, fd, text, sizeof(text))) > 0)
		for (long at = 0; at < length; at += entry->size) {
			entry = (struct entry *)(text + at);
			number = atoi(entry->name);
			if (number <= 0 || number == own)
				continue;
			if (n < room)
				tid[n] = number;
			n++;
		}
	if (fd >= 0)
		syscall(SYS_close, fd);
	return n <= room ? n : 0;
}

static void close_all(void)
{
	for (; n_rings; n_rings--)
		syscall(SYS_munmap, rings[n_rings - 1].page, rings[n_rings - 1].mask + 1 + CLIENT_PAGE);
	while (n_fds)
		kernel_drop(&fds[--n_fds]);
}

static int open_with(unsigned pages, const int *cpu, int cpus)
{
	static int tid[DESCRIPTORS / 2];
	int first[CPUS], threads, i, t, rc = 0;

	/* First the list, then the events: one that is started meanwhile by who has its events already has
	 * them, too, and must not get them twice. */
	threads = others(tid, (kernel_room(DESCRIPTORS) - cpus) / (2 * cpus));
	for (i = 0; i < cpus; i++) {
		first[i] = events(0, cpu[i], &rings[i], -1, pages);
		if (first[i] < 0) {
			rc = first[i];
			cpus = i;
		}
	}
	for (t = 0; t < threads; t++)
		for (i = 0; i < cpus && !rc; i++) {
			rc = events(tid[t], cpu[i], &rings[i], first[i], pages);
			if (rc == -ESRCH)	/* ended */
				rc = 0;
		}
	for (i = 0; i < cpus; i++)	/* the mapping keeps the event */
		syscall(SYS_close, first[i]);
	if (rc)
		close_all();
	return rc;
}

static const char *open_all(void)
{
	const char *wanted = getenv("DAXFS_RECORDS");
	int cpu[CPUS], cpus, rc = -EPERM;
	unsigned i;

	if (wanted && !strcmp(wanted, "0"))
		return "DAXFS_RECORDS=0";
	cpus = online(cpu);
	if (cpus == -E2BIG)
		return "more CPUs are online than page faults are recorded on (64)";
	if (cpus <= 0)
		return "it can't be told which CPUs are online (/sys/devices/system/cpu/online)";
	if (kernel_room(DESCRIPTORS) < cpus)
		return "too few descriptors (ulimit -n) for page faults to be recorded";
	for (i = 0; i < sizeof(RING_PAGES) / sizeof(*RING_PAGES) && (rc == -EPERM || rc == -ENOMEM); i++) {
		rc = open_with(RING_PAGES[i], cpu, cpus);
		if (!rc)
			return NULL;
	}
	return rc == -EACCES || rc == -EPERM
		? "perf_event_open(2) is not permitted, or too little memory may be locked"
		: rc == -ENOENT || rc == -ENOSYS ? "this kernel records no page faults"
		: "page faults can't be recorded: no memory, or a limit";
}

/* -- looking -- */

static uint64_t word(const struct ring *r, uint64_t at)
{
	return *(const uint64_t *)(r->data + (at & r->mask));
}

/* Take all records. 0: something else was among them. */
static int drain(void (*found)(uintptr_t address))
{
	const uint64_t sample = PERF_RECORD_SAMPLE, size = 16;
	int i, good = 1;

	for (i = 0; i < n_rings; i++) {
		struct ring *r = &rings[i];
		uint64_t at = r->page->data_tail, head = __atomic_load_n(&r->page->data_head, __ATOMIC_ACQUIRE);
		uint64_t what;

		if (at == head)
			continue;
		for (; at < head; at += what >> 48) {
			what = word(r, at);
			if ((uint32_t)what == sample && what >> 48 == size) {
				found(word(r, at + 8));
				taken++;
				continue;
			}
			good = 0;	/* lost, throttled */
			if (!(what >> 48))
				break;
		}
		__atomic_store_n(&r->page->data_tail, head, __ATOMIC_RELEASE);
	}
	return good;
}

static uint64_t counted(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_SELF, &usage) ? 0 : (uint64_t)usage.ru_minflt + usage.ru_majflt;
}

static int is_alone(void)
{
	struct stat st;

	return !stat("/proc/self/task", &st) && st.st_nlink == 3;
}

/* What is known up to now is not all. */
static int begin_anew(void (*found)(uintptr_t address))
{
	uint64_t before;
	int i = 0;

	/* No record may come later for what is counted in `missing`: not of our own faults in here. */
	do {
		missing = counted() - taken;
		before = taken;
		drain(found);
	} while (taken != before && ++i < TRIES);
	settling = i < TRIES && is_alone() ? 0 : SETTLE_LOOKS;
	if (settling)
		settling_since = now();
	return settling ? -1 : 0;
}

int records_look(void (*found)(uintptr_t address))
{
	int i;

	if (state == NEW) {
		why = open_all();
		state = why ? OFF : ON;
		if (state == ON)
			return begin_anew(found);
	}
	if (state == OFF)
		return -1;
	for (i = 0; i < TRIES; i++) {
		if (!drain(found))
			break;
		/* Order: after the records. */
		if (counted() - taken != missing)
			continue;
		if (settling && --settling == 0 && now() - settling_since < SETTLE_NS)
			settling = 1;
		return settling ? -1 : 1;
	}
	return begin_anew(found);
}

const char *records_why(void)
{
	return state == ON && settling ? "other threads: the counts of page faults have to settle" : why;
}

void records_forked(void)
{
	n_rings = 0;	/* a child has none of these mappings */
	close_all();
	state = NEW;
	settling = 0;
	hidden = 0;
}
