/* SPDX-License-Identifier: MIT
 *
 * What a page fault becomes: one decision for read, write, COW and mkwrite, PTE or PMD.
 *
 * fault_decide is a function of its arguments alone: no lock, no allocation, no side effect, no system call.
 * It names the reason for each fallback from PMD to PTE (SEEDS.md S7), the first one in the order in which
 * Linux finds them: create_huge_pmd, dax_fault_check_fallback, dax_iomap_pmd_fault, dax_fault_iter,
 * dax_iomap_direct_access, dax_pmd_load_hole. The caller looks the extent up, and holds the file's lock
 * from then until it has done what was decided (docs/concurrency.md).
 */
#ifndef DAXFS_FAULT_H
#define DAXFS_FAULT_H

#include <stdint.h>

#include "daxfs/native/filemap.h"

#define FAULT_PMD_ORDER 9
#define FAULT_PMD_PAGES (UINT64_C(1) << FAULT_PMD_ORDER)
#define FAULT_COLOUR (FAULT_PMD_PAGES - 1)	/* of a page number: where it stands in its 2 MiB */

enum fault_kind {
	FAULT_READ,
	FAULT_WRITE,		/* to a shared mapping; nothing is mapped there, or a PMD without the right to write */
	FAULT_COW,		/* a write to a private mapping */
	FAULT_MKWRITE,		/* a write to a PTE without the right to write */
	FAULT_KINDS
};

/* What to do, or what came of it: the kernel's VM_FAULT_* and where each comes from.
 * NOPAGE     decision: map it; handler: it is mapped, the program goes on.
 * LOCKED     decision: copy the page while its entry is locked; nothing of the file is mapped, nothing
 *            allocated (COW; Linux says DONE_COW once it has copied).
 * FALLBACK   handler: a PMD was decided and can't be had any more (a PTE entry came first, the place in the
 *            page table was taken): decide again, with FAULT_PTE_ENTRY or FAULT_TABLE. From the decision no
 *            fallback comes alone: it is order 0 with a reason, and one of the other results.
 * SIGBUS     decision: beyond the end of file, or poisoned. Handler: storage could not be had.
 * OOM        handler: no memory for an entry or a page table.
 * NEEDDSYNC  decision: as NOPAGE, but what was allocated or converted must be durable before it is mapped.
 *            Without FAULT_SYNC the handler may do the same; it is asked for by MAP_SYNC alone.
 * FAULT_MAJOR is a flag beside NOPAGE or NEEDDSYNC, from the decision: a block will be taken for a PTE. */
enum fault_result {
	FAULT_NOPAGE,
	FAULT_LOCKED,
	FAULT_FALLBACK,
	FAULT_SIGBUS,
	FAULT_OOM,
	FAULT_NEEDDSYNC,
	FAULT_MAJOR = 8,
	FAULT_RESULTS = 16	/* with the flag */
};

/* Why a PTE and not a PMD, in order: the first one that holds is named. */
enum fault_reason {
	FAULT_NO_REASON,
	FAULT_R_PMD_OFF,	/* the region or the mapping has no PMDs (MADV_NOHUGEPAGE) */
	FAULT_R_TABLE,		/* the mapping has a page table there: Linux then asks for no PMD */
	FAULT_R_COLOUR,		/* address and file offset differ modulo 2 MiB */
	FAULT_R_COW,
	FAULT_R_START,		/* the 2 MiB start before the mapping */
	FAULT_R_END,		/* they end after it */
	FAULT_R_EOF,		/* they pass the end of file */
	FAULT_R_PTE_ENTRY,	/* a PTE entry is in them */
	FAULT_R_SHORT,		/* the extent, or hole, does not hold all of them */
	FAULT_R_POISON,		/* a page of them is poisoned */
	FAULT_R_UNALIGNED,	/* their first frame is not a multiple of 512 */
	FAULT_R_NO_ZERO_PAGE,	/* there is no huge zero page for a read of a hole */
	FAULT_REASONS
};

/* Of fault_args.flags. */
enum {
	FAULT_PMD = 1,		/* PMD mappings are possible here */
	FAULT_ZERO_PAGE = 2,	/* there is a huge zero page */
	FAULT_SYNC = 4,		/* MAP_SYNC */
	FAULT_PTE_ENTRY = 8,	/* a PTE entry is in the 2 MiB (entry.h) */
	FAULT_TABLE = 16,	/* the mapping's 2 MiB have a page table already */
	FAULT_POISON = 32,	/* the page is poisoned */
	FAULT_POISON_PMD = 64	/* some page of the 2 MiB is; set with FAULT_POISON, too */
};

struct fault_args {
	uint64_t pgoff;			/* page of the file */
	uint64_t address;		/* page number of the address */
	uint64_t vma_start, vma_end;	/* the mapping, page numbers, [start, end) */
	uint64_t size;			/* bytes of the file, any 64-bit number */
	uint32_t kind;			/* enum fault_kind */
	uint32_t flags;
};

struct fault_decision {
	uint8_t order;			/* 0 or FAULT_PMD_ORDER */
	uint8_t result;			/* enum fault_result, perhaps with FAULT_MAJOR */
	uint8_t reason;			/* enum fault_reason; only with order 0 */
};

/* For page a->pgoff, whose whole extent, or whole hole, is *extent*. The address is in the mapping. */
struct fault_decision fault_decide(const struct fault_args *a, const struct iomap *extent);
/* The whole extent, or the whole hole, that holds `pgoff`. Under the file's lock. */
void fault_extent(const struct filemap *f, uint64_t pgoff, struct iomap *out);

#endif
