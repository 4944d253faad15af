/* SPDX-License-Identifier: MIT
 *
 * What a client and the daemon say to each other about observed mappings: three ioctls on the descriptor of
 * a file of the mount (docs/fault.md). The client's half is daxfs/client, the daemon's
 * daxfs/fuse/observing.py (a test compares its numbers with these). Nothing of daxfs is needed to use it.
 */
#ifndef DAXFS_OBSERVE_ABI_H
#define DAXFS_OBSERVE_ABI_H

#include <stdint.h>
#include <sys/ioctl.h>

#define DAXFS_OBSERVE_VERSION 2
/* Modes, also bits of `modes`. KERNEL: write protection is asynchronous, dirty pages are read with
 * PAGEMAP_SCAN. USER: the daemon answers faults: registered for missing, minor and write-protect faults of
 * shared memory. Such a client has to close its userfaultfd when the daemon is gone: nobody answers then. */
enum { DAXFS_FAULT_KERNEL = 1, DAXFS_FAULT_USER = 2 };
enum {	/* the numbers of native/flush.h */
	DAXFS_FLUSH_CLWB = 0, DAXFS_FLUSH_CLFLUSHOPT = 1, DAXFS_FLUSH_CLFLUSH = 2, DAXFS_FLUSH_NONE = 3,
	DAXFS_FLUSH_MSYNC = 4,	/* page granularity: call msync(2) */
};

/* What this descriptor's file is. */
struct daxfs_about {
	uint32_t version;	/* DAXFS_OBSERVE_VERSION of the daemon */
	uint32_t direct;	/* 1: mappings of this handle are direct now; 0: observing is not possible */
	uint32_t modes;		/* DAXFS_FAULT_* that the daemon offers */
	uint32_t flush;		/* DAXFS_FLUSH_*: how to write back */
	uint32_t granularity;	/* 0 byte, 1 cache line, 2 page */
	uint32_t syncs;		/* 1: the file system below tracks stores by itself: msync(2) is its own; `modes` is 0 */
	uint64_t ino, generation;
	int32_t daemon;		/* its pid in the caller's pid name space; 0: not to be told */
	uint32_t pad;
	/* The medium that is emulated, for who writes back by himself (native/emulate.h): ps for each line of 64
	 * bytes, ps that it is on the wire, ps for a drain. All 0: none is, or the daemon is an older one. */
	uint32_t line_ps, wire_ps;
	uint64_t drain_ps;
};

/* A mapping of this file, made and registered with userfaultfd by the caller, is observed from now on. */
struct daxfs_observe {
	uint32_t version, mode;	/* DAXFS_OBSERVE_VERSION, one of DAXFS_FAULT_* */
	int32_t uffd;		/* registered on the mapping already; the daemon takes a copy. -1: none (KERNEL alone) */
	uint32_t prot;		/* PROT_* of the mapping */
	uint64_t address, length, offset;	/* multiples of 4096; length > 0 */
	uint64_t id;		/* out: never 0, never the same again on this mount */
	uint64_t flags;		/* DAXFS_OBSERVE_* */
	int32_t progress;	/* PROGRESS: a memfd, 4096 bytes, sealed against shrinking; the daemon copies it. Else 0 */
	uint32_t slot;		/* PROGRESS: below DAXFS_PROGRESS_SLOTS. Else 0 */
};
enum {
	DAXFS_OBSERVE_PTE = 1,		/* USER: each fault is one of 4 KiB, and each mark */
	DAXFS_OBSERVE_PROGRESS = 2,	/* the process writes back by itself, and says so in `progress` */
};

/*
 * Who writes back what it finds in its own page table takes marks, and an fsync that looks before the lines
 * are flushed finds nothing. So it counts: `begun` goes up before the scan that protects, `ended` after the
 * drain, in slot `slot` of `progress`. One write-back at a time uses a slot. After its own look fsync waits a
 * short while for who had begun, then takes all pages of the mapping for dirty. The first memfd of a process
 * holds.
 *
 * The other way round the daemon counts: `taking` goes up before it protects what was stored, `flushed` when
 * all that it found is durable. Who finds them different after a write-back of his own waits, or flushes
 * everything.
 */
struct daxfs_progress {
	uint64_t begun, ended;
	uint64_t taking, flushed;
	uint64_t unused[4];	/* a cache line */
};
#define DAXFS_PROGRESS_SLOTS 64

/* Before munmap, or before an address range becomes something else. */
struct daxfs_forget {
	uint64_t id, address, length;	/* a piece of mapping `id`, or all of it; what is left stays observed */
	uint32_t dirty;		/* 1: pages may have been stored and not flushed. 0: the caller flushed and drained */
	uint32_t pad;		/* 0 */
};

#define DAXFS_IOC_ABOUT _IOR(0xDA, 0, struct daxfs_about)
#define DAXFS_IOC_OBSERVE _IOWR(0xDA, 1, struct daxfs_observe)
#define DAXFS_IOC_FORGET _IOW(0xDA, 2, struct daxfs_forget)

_Static_assert(sizeof(struct daxfs_about) == 64, "struct daxfs_about");
_Static_assert(sizeof(struct daxfs_observe) == 64, "struct daxfs_observe");
_Static_assert(sizeof(struct daxfs_forget) == 32, "struct daxfs_forget");
_Static_assert(sizeof(struct daxfs_progress) == 64, "struct daxfs_progress");

#endif
