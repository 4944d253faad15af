/* SPDX-License-Identifier: MIT
 *
 * Pages of a source that go away while they are mapped: somebody truncated the file, or the memory has an
 * error. The kernel answers the access with SIGBUS. A window that is watched survives that: the page is
 * replaced by a private one of zeros, so that the instruction can go on, and the range table becomes dead and
 * lost: nobody enters any more, and whoever is inside finds -EIO when it leaves (range_leave, filemap.h). So
 * nothing that was read from such a page is given to anybody as data, and nothing reaches the source later.
 *
 * A page of an own range (own.h) that goes away is that range's alone: it is torn, and nothing else is.
 * A program may do that to its own file, by MADV_REMOVE and a file system below that is full.
 *
 * A SIGBUS anywhere else goes to whoever handled it before. The handler runs in the thread that
 * touched the page, which must not block SIGBUS; it calls mmap and touches nothing but the words here.
 */
#ifndef DAXFS_LOST_H
#define DAXFS_LOST_H

#include <stddef.h>

#include "daxfs/native/filemap.h"

#define LOST_WINDOWS 1024

/* Watch [base, base + length), whose pages come in units (a power of two: huge pages, devdax). The first call
 * installs the handler. 0; -ENOSPC: too many windows; -errno of sigaction. */
int lost_watch(char *base, size_t length, size_t unit, struct range_table *t);
/* The same for a window of own ranges: the one at byte p of it is at[p >> shift]; NULL: nobody's, and the
 * SIGBUS is passed on. A range must stay while addresses in it are used. */
int lost_watch_own(char *base, size_t length, struct own_range **at, unsigned shift);
/* Before the window is unmapped. No access to it may be under way. */
void lost_forget(const char *base);

#endif
