/* SPDX-License-Identifier: MIT
 *
 * The decision of fault.h. Limits: it knows no userfaultfd, no entry, no file system.
 */
#include "daxfs/native/fault.h"

#define BYTE_MASK ((UINT64_C(1) << DAXFS_PAGE_SHIFT) - 1)

/* dax_fault_check_fallback, and what comes before it: what is known without the file's layout. */
static enum fault_reason check_place(const struct fault_args *a, uint64_t base, uint64_t pages)
{
	uint64_t before = a->pgoff - base, start = a->address - before;

	if (!(a->flags & FAULT_PMD))
		return FAULT_R_PMD_OFF;
	if (a->flags & FAULT_TABLE)
		return FAULT_R_TABLE;
	if ((a->pgoff & FAULT_COLOUR) != (a->address & FAULT_COLOUR))
		return FAULT_R_COLOUR;
	if (a->kind == FAULT_COW)
		return FAULT_R_COW;
	if (start < a->vma_start)	/* the colour is the same: start does not wrap */
		return FAULT_R_START;
	if (start + FAULT_PMD_PAGES > a->vma_end)
		return FAULT_R_END;
	if (base + FAULT_COLOUR >= pages)
		return FAULT_R_EOF;
	return FAULT_NO_REASON;
}

/* The page's frame will be looked at: not for reads of what reads as zeros. */
static int reaches_frame(const struct fault_args *a, const struct iomap *e)
{
	if (a->kind == FAULT_READ || a->kind == FAULT_COW)
		return e->type == IOMAP_MAPPED;
	return e->type != IOMAP_HOLE;
}

/* grab_mapping_entry, then the extent: dax_iomap_pmd_fault, dax_iomap_direct_access, dax_pmd_load_hole. */
static enum fault_reason check_layout(const struct fault_args *a, const struct iomap *e, uint64_t base)
{
	if (a->flags & FAULT_PTE_ENTRY)
		return FAULT_R_PTE_ENTRY;
	if (e->pgoff > base || e->pgoff + e->len < base + FAULT_PMD_PAGES)
		return FAULT_R_SHORT;
	if (reaches_frame(a, e)) {
		if (a->flags & (FAULT_POISON | FAULT_POISON_PMD))
			return FAULT_R_POISON;
		if ((e->pfn + (base - e->pgoff)) & FAULT_COLOUR)
			return FAULT_R_UNALIGNED;
	} else if (a->kind == FAULT_READ && !(a->flags & FAULT_ZERO_PAGE)) {
		return FAULT_R_NO_ZERO_PAGE;
	}
	return FAULT_NO_REASON;
}

struct fault_decision fault_decide(const struct fault_args *a, const struct iomap *e)
{
	struct fault_decision out = {0, FAULT_NOPAGE, FAULT_NO_REASON};
	uint64_t base = a->pgoff & ~FAULT_COLOUR;
	uint64_t pages = (a->size >> DAXFS_PAGE_SHIFT) + ((a->size & BYTE_MASK) != 0);
	int writes = a->kind == FAULT_WRITE || a->kind == FAULT_MKWRITE;

	if (a->pgoff >= pages) {
		out.result = FAULT_SIGBUS;
		return out;
	}
	if (a->kind != FAULT_MKWRITE) {
		out.reason = check_place(a, base, pages);
		if (out.reason == FAULT_NO_REASON)
			out.reason = check_layout(a, e, base);
		out.order = out.reason == FAULT_NO_REASON ? FAULT_PMD_ORDER : 0;
	}
	if (a->flags & FAULT_POISON && reaches_frame(a, e))
		out.result = FAULT_SIGBUS;
	else if (a->kind == FAULT_COW)
		out.result = FAULT_LOCKED;
	else if (writes && a->flags & FAULT_SYNC && e->type != IOMAP_MAPPED)
		out.result = FAULT_NEEDDSYNC;
	if (writes && !out.order && e->type == IOMAP_HOLE)
		out.result |= FAULT_MAJOR;	/* of a hole: it is not SIGBUS */
	return out;
}

void fault_extent(const struct filemap *f, uint64_t pgoff, struct iomap *out)
{
	size_t i = filemap_find(f, pgoff);

	if (i < f->n && f->e[i].pgoff <= pgoff) {
		*out = f->e[i];
		return;
	}
	filemap_lookup(f, pgoff, out);
	out->len += pgoff;
	out->pgoff = 0;
	if (i) {
		out->pgoff = f->e[i - 1].pgoff + f->e[i - 1].len;
		out->len -= out->pgoff;
	}
}
