/* SPDX-License-Identifier: MIT
 *
 * Between flush.c (portable) and flush_x86.c (one CPU family): what the family offers
 * and the kernels for it. Private to these two files.
 */
#ifndef DAXFS_FLUSH_CPU_H
#define DAXFS_FLUSH_CPU_H

#include "daxfs/native/flush.h"

/* DAXFS_NO_X86 builds the portable half alone on an x86 machine (tests do). */
#if defined(__x86_64__) && !defined(DAXFS_NO_X86)
#define DAXFS_X86 1
#else
#define DAXFS_X86 0
#endif

#define DAXFS_HAS_KIND(k) (1u << (k))
#define DAXFS_HAS_NT(k) (1u << (8 + (k)))

#if DAXFS_X86
/* The bits of daxfs_flush_available that CPUID and the OS grant. */
unsigned daxfs_x86_available(void);
/* Fill `lines` for a cache-line kind; `drain`, and for a non-temporal kind the kernels. */
void daxfs_x86_bind(struct daxfs_flush *t);
#endif

#endif
