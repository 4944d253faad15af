/* SPDX-License-Identifier: MIT
 *
 * Random histories of three files against a model that keeps a byte for each line of 64 bytes: writes, stores
 * of mappings, write-back, cuts, holes, pages that go from file to file, switches of one or all. Checked:
 * - before a store the line is marked (none: never);
 * - what was stored and not drained is marked, at each drain, too: marks go after it;
 * - at the return of a write-back of all nothing of the file is left; of what was stored, and, for line, pte
 *   and pmd, of the marks;
 * - no more is marked than was stored, in units, and whole pages at a mapping's store or a switch;
 * - no line is flushed that the policy does not have to, or twice in one write-back; of extents all of those
 *   that are active, which stay so.
 * - with an odd seed marks stand in slots of the region (dirty.h), too few, and full of what another mount
 *   left: what any() and tracker_bytes() of a bitmap say they say without them, and at the end all are back.
 * A and B are packed and share the region's extents, over a gap in the region; C is in a range of its own.
 * Arguments: the seed, how many steps. Status 1 and a line where something is wrong.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daxfs/native/daxio.h"
#include "daxfs/native/dirty.h"
#include "daxfs/native/tracker.h"

#define PAGE 4096u
#define EACH (PAGE / DAXFS_LINE)
#define REGION 768u			/* pages; an extent has 3 */
#define GAP 511u			/* in no range, as the next one begins on 2 MiB: extent 170 is 510 to 512 */
#define NEXT 512u
#define OWN_AT 4096u			/* where C's range begins */
#define FILE_PAGES 600u			/* a unit of 2 MiB and a piece; two chunks of lines */
#define PAGES (OWN_AT + FILE_PAGES)
#define FILES 3
#define SLOTS 4

enum { CLEAN, STORED, FLUSHED };

static const struct dax_tracker *const KINDS[] = {&dax_tracker_pte, &dax_tracker_pmd, &dax_tracker_line,
	&dax_tracker_extent, &dax_tracker_extent_clear, &dax_tracker_none};
#define NKINDS 6

static char *memory;
static unsigned char state[PAGES * EACH];	/* of lines: what the media lack */
static unsigned char seen[PAGES * EACH];	/* times flushed in this write-back */
static unsigned char unknown[PAGES * EACH];	/* stored under none */
static unsigned char forced[FILES][FILE_PAGES * EACH];	/* may be marked, though clean */
static struct filemap file[FILES];
static struct dirty_map bits[FILES];
static struct extent_map shared;
static struct own_range own;
static struct range_table ranges;
static struct dirty_arena slots, *arena;	/* NULL: marks are in DRAM */
static struct daxfs_flush ops;
static struct daxio io = {.table = &ranges, .ops = &ops, .writable = 1};
static struct filemap *storing;
static unsigned long step, seed;
static uint64_t turn;

static void wrong(const char *what, int f, uint64_t line)
{
	fprintf(stderr, "seed %lu step %lu: %s: file %d (%s), line %lu\n", seed, step, what, f,
		f < 0 ? "-" : file[f].tracker->name, (unsigned long)line);
	exit(1);
}

static uint64_t pick(uint64_t n)
{
	turn = turn * 6364136223846793005u + 1442695040888963407u;
	return (turn >> 33) % n;
}

/* The line of memory in which line `line` of the file stands; UINT64_MAX: none. */
static uint64_t place(int f, uint64_t line)
{
	struct iomap m;

	filemap_lookup(&file[f], line / EACH, &m);
	return m.type == IOMAP_MAPPED ? m.pfn * EACH + line % EACH : UINT64_MAX;
}

static int is_extent(int f)
{
	return file[f].tracker->extents;
}

static int is_none(int f)
{
	return file[f].tracker == &dax_tracker_none;
}

/* Which lines of the file the tracker reports. */
static const unsigned char *reported(int f)
{
	static unsigned char out[FILE_PAGES * EACH + (2u << 20) / DAXFS_LINE];
	uint64_t at = 0, len;

	memset(out, 0, sizeof(out));
	while ((at = file[f].tracker->next_run(&file[f], at, &len)) != UINT64_MAX) {
		if (!len || at % DAXFS_LINE || len % DAXFS_LINE || at + len > sizeof(out) * DAXFS_LINE)
			wrong("a run that can't be", f, at / DAXFS_LINE);
		memset(out + at / DAXFS_LINE, 1, len / DAXFS_LINE);
		at += len;
	}
	return out;
}

static void check_superset(int f)
{
	const unsigned char *marked;

	if (is_none(f))
		return;
	marked = reported(f);
	for (uint64_t line = 0; line < FILE_PAGES * EACH; line++) {
		uint64_t p = place(f, line);

		if (p == UINT64_MAX || state[p] == CLEAN || unknown[p])
			continue;
		if (!marked[line])
			wrong("stored and not marked", f, line);
		if (!tracker_any(&file[f]))
			wrong("stored, and it says that there is nothing", f, line);
	}
}

/* Marked, and neither stored nor forced in its unit. */
static void check_no_more(int f)
{
	uint64_t each = is_none(f) || is_extent(f) ? 0 : (UINT64_C(1) << file[f].tracker->shift) / DAXFS_LINE;
	const unsigned char *marked = reported(f);
	uint64_t n = 0;

	for (uint64_t line = 0, p; each && line < FILE_PAGES * EACH; line += each) {
		int due = 0, has = 0;

		for (uint64_t i = line; i < line + each && i < FILE_PAGES * EACH; i++) {
			p = place(f, i);
			due |= forced[f][i] || (p != UINT64_MAX && state[p] != CLEAN);
			has |= marked[i];
		}
		if (has && !due)
			wrong("marked for nothing", f, line);
		n += has ? each : 0;
	}
	if (each && n * DAXFS_LINE != tracker_bytes(&file[f]))
		wrong("bytes that are marked", f, n);
	if (is_none(f) && (tracker_any(&file[f]) || tracker_bytes(&file[f])))
		wrong("none has marks", f, 0);
}

/* -- the flush table ----------------------------------------------------------------------------- */

static uint64_t line_of(const void *p)
{
	return (uint64_t)((const char *)p - memory) / DAXFS_LINE;
}

static void store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	uint64_t first = line_of(dst), n = daxfs_lines(dst, len);
	int f = (int)(storing - file);
	const unsigned char *marked = reported(f);

	for (uint64_t line = 0; line < FILE_PAGES * EACH && !is_none(f); line++) {
		uint64_t p = place(f, line);

		if (p >= first && p < first + n && !marked[line])
			wrong("stored before it is marked", f, line);
	}
	memcpy(dst, src, len);
	memset(state + first, STORED, n);
	memset(unknown + first, is_none(f), n);
}

static void nt_store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	memcpy(dst, src, len);
}

static void flush(struct daxfs_flush *t, const void *addr, size_t len)
{
	uint64_t first = line_of(addr);

	for (uint64_t p = first; p < first + daxfs_lines(addr, len); p++) {
		if (p / EACH >= GAP && p / EACH < NEXT)
			wrong("flushed what is no memory", -1, p);
		if (seen[p]++)
			wrong("flushed twice", -1, p);
		state[p] = state[p] == STORED ? FLUSHED : state[p];
	}
}

static void drain(struct daxfs_flush *t)
{
	for (int f = 0; f < FILES; f++)
		check_superset(f);
	for (uint64_t p = 0; p < PAGES * EACH; p++)
		state[p] = state[p] == FLUSHED ? CLEAN : state[p];
}

/* -- what is done -------------------------------------------------------------------------------- */

/* [*pos, *pos + *len) of an extent of the file; 0: it has none. */
static int somewhere(int f, uint64_t *pos, uint64_t *len, uint64_t most)
{
	const struct iomap *e;
	uint64_t end;

	if (!file[f].n)
		return 0;
	e = &file[f].e[pick(file[f].n)];
	end = (e->pgoff + e->len) * PAGE;
	end = end < file[f].size ? end : file[f].size;
	if (e->pgoff * PAGE >= end)
		return 0;
	*pos = e->pgoff * PAGE + pick(end - e->pgoff * PAGE);
	*len = 1 + pick(most);
	if (!pick(3))
		*pos = e->pgoff * PAGE;
	else if (!pick(3))
		*pos = *len < end - e->pgoff * PAGE ? end - *len : e->pgoff * PAGE;
	*len = *len < end - *pos ? *len : end - *pos;
	return 1;
}

static void write_at(int f, uint64_t pos, uint64_t len)
{
	static char data[PAGE * 40];

	storing = &file[f];
	if (dax_copy_in(&io, &file[f], pos, len, data, 0))
		wrong("a write fails", f, pos / DAXFS_LINE);
}

static void write_some(int f)
{
	uint64_t pos, len;

	if (somewhere(f, &pos, &len, pick(4) ? 300 : PAGE * 40))
		write_at(f, pos, len);
}

/* What a mapping has stored to: told afterwards, in pages. */
static void map_some(int f)
{
	uint64_t first = pick(FILE_PAGES), pages = 1 + pick(pick(3) ? 3 : 600);

	pages = pages < FILE_PAGES - first ? pages : FILE_PAGES - first;
	if (tracker_mark_pages(&file[f], first, pages))
		wrong("a mark fails", f, first * EACH);
	for (uint64_t line = first * EACH; line < (first + pages) * EACH; line++) {
		uint64_t p = place(f, line);

		if (p == UINT64_MAX || line * DAXFS_LINE >= (file[f].size + PAGE - 1) / PAGE * PAGE)
			forced[f][line] |= p != UINT64_MAX && !is_none(f);
		else if (state[p] = STORED, !(unknown[p] = is_none(f)))
			continue;
	}
}

/* S15: every active extent, all of it, whatever was asked for; nothing else, and nothing while none is active. */
static void check_extents(int f)
{
	const struct extent_map *m = tracker_extents(&file[f]);
	uint64_t size = (file[f].size + PAGE - 1) / PAGE;

	for (uint64_t page = 0, p; page < (f == 2 ? FILE_PAGES : REGION); page++) {
		int due = m && extent_is_active(m, (unsigned)(page / m->pages));

		p = f == 2 ? place(f, page * EACH) : page * EACH;
		if (p == UINT64_MAX)
			continue;
		due = due && (f == 2 ? page < size : page < GAP || page >= NEXT);
		if (due != !!seen[p])
			wrong(due ? "an active extent is not flushed" : "flushed what is idle", f, page * EACH);
	}
}

static void check_flushed(int f, uint64_t first, uint64_t last)
{
	uint64_t shift = file[f].tracker->shift, unit, p;
	static unsigned char mine[PAGES * EACH];

	if (is_extent(f)) {
		check_extents(f);
		return;
	}
	memset(mine, 0, sizeof(mine));
	for (uint64_t line = 0; line < FILE_PAGES * EACH; line++)
		if ((p = place(f, line)) != UINT64_MAX)
			mine[p] = 1;
	for (p = 0; p < PAGES * EACH; p++)
		if (seen[p] && !mine[p])
			wrong("flushed what is not its own", f, p);
	unit = shift ? UINT64_C(1) << shift : 1;
	for (uint64_t line = 0; line < FILE_PAGES * EACH; line++) {
		uint64_t low = first * PAGE / unit * unit, high = (last * PAGE + unit - 1) / unit * unit;

		p = place(f, line);
		if (p != UINT64_MAX && seen[p] && (line * DAXFS_LINE < low || line * DAXFS_LINE >= high))
			wrong("flushed outside of what was asked for", f, line);
	}
}

static void write_back(int f, uint64_t first, uint64_t last)
{
	int64_t done;
	uint64_t count = 0;

	struct extent_map *m = is_extent(f) ? tracker_extents(&file[f]) : NULL;
	unsigned active = m ? extent_count(m) : 0;

	memset(seen, 0, sizeof(seen));
	done = dax_writeback(&io, &file[f], first, last, NULL);
	if (m && extent_count(m) != active)
		wrong("extents are cleared", f, active);
	for (uint64_t p = 0; p < PAGES * EACH; p++)
		count += seen[p];
	if (done < 0 || (uint64_t)done != count * DAXFS_LINE)
		wrong("bytes that were flushed", f, count);
	check_flushed(f, first, last < FILE_PAGES ? last : FILE_PAGES);
	if (first || last < FILE_PAGES)
		return;
	memset(forced[f], 0, sizeof(forced[f]));
	for (uint64_t line = 0; line < FILE_PAGES * EACH && !is_none(f); line++) {
		uint64_t p = place(f, line), size = (file[f].size + PAGE - 1) / PAGE * EACH;

		if (p != UINT64_MAX && line < size && state[p] != CLEAN && !unknown[p])
			wrong("fsync left it", f, line);
	}
	if (!is_extent(f) && tracker_any(&file[f]))
		wrong("fsync left a mark", f, 0);
}

/* As meta does it: the pages go, then their marks. What was stored there is nobody's. */
static void drop_pages(int f, uint64_t first, uint64_t last)
{
	struct iomap keep[2], m;
	uint64_t at;
	size_t i;
	int n;

	for (at = first; at < last; at = m.pgoff + m.len) {
		filemap_lookup(&file[f], at, &m);
		m.len = m.len < last - at ? m.len : last - at;
		if (m.type == IOMAP_HOLE)
			continue;
		i = filemap_find(&file[f], at);
		n = 0;
		if (file[f].e[i].pgoff < at)
			keep[n++] = (struct iomap){file[f].e[i].pgoff, at - file[f].e[i].pgoff, file[f].e[i].pfn,
				IOMAP_MAPPED, 0};
		if (file[f].e[i].pgoff + file[f].e[i].len > at + m.len)
			keep[n++] = (struct iomap){at + m.len, file[f].e[i].pgoff + file[f].e[i].len - at - m.len,
				m.pfn + m.len, IOMAP_MAPPED, 0};
		memset(state + m.pfn * EACH, CLEAN, m.len * EACH);
		if (filemap_splice(&file[f], i, 1, keep, (size_t)n))
			wrong("a splice fails", f, at);
	}
	file[f].tracker->clean(&file[f], first * PAGE, (last - first) * PAGE);
	for (uint64_t line = first * EACH; line < last * EACH; line++)
		forced[f][line] = file[f].tracker->shift == 21;	/* a part of the unit may stay */
}

/* Pages that nobody has, at the first hole of the file. New pages are stored past the cache. */
static void take_pages(int f)
{
	static unsigned char used[PAGES];
	uint64_t n = 1 + pick(40), most = f == 2 ? own.pages : FILE_PAGES, at = pick(most);
	uint64_t pfn = f == 2 ? OWN_AT + at : pick(REGION);
	struct iomap m, e;

	if (f < 2 && !pick(3))
		pfn = pick(2) ? NEXT : GAP - 1;
	memset(used, 0, sizeof(used));
	for (uint64_t page = GAP; page < NEXT; page++)
		used[page] = 1;
	for (int g = 0; g < FILES; g++)
		for (size_t i = 0; i < file[g].n; i++)
			memset(used + file[g].e[i].pfn, 1, file[g].e[i].len);
	filemap_lookup(&file[f], at, &m);
	for (e = (struct iomap){at, 0, pfn, IOMAP_MAPPED, 0}; m.type == IOMAP_HOLE && e.len < n && e.len < m.len
	     && at + e.len < most && (f == 2 || pfn + e.len < REGION) && !used[pfn + e.len];)
		e.len++;
	if (!e.len || (e.pfn < GAP && e.pfn + e.len > GAP && f != 2))
		return;
	if (filemap_splice(&file[f], filemap_find(&file[f], at), 0, &e, 1))
		wrong("a splice fails", f, at);
}

static void cut(int f)
{
	uint64_t pages = 1 + pick(f == 2 ? own.pages : FILE_PAGES);

	file[f].size = pages * PAGE - pick(PAGE);
	drop_pages(f, pages, FILE_PAGES);
	if (pick(2))
		file[f].size = (f == 2 ? own.pages : FILE_PAGES) * PAGE;
	if (pick(2) && file[f].n) {
		const struct iomap *e = &file[f].e[file[f].n - 1];
		uint64_t end = (e->pgoff + e->len) * PAGE;

		write_at(f, (end < file[f].size ? end : file[f].size) - 1, 1);
		if (pick(2))
			write_back(f, 0, UINT64_MAX);
	}
}

static void grow(void)
{
	own.pages += pick(150);
	own.pages = own.pages < FILE_PAGES ? own.pages : FILE_PAGES;
	file[2].size = own.pages * PAGE;
}

static int needs_map(const struct dax_tracker *t)
{
	return t->shift && !t->extents;
}

static void switch_to(int f, const struct dax_tracker *to, struct extent_map *extents)
{
	const unsigned char *was = reported(f);
	struct dirty_map fresh, old;
	int from_none = is_none(f);

	dirty_init(&fresh, arena);
	if (to == &dax_tracker_none)
		write_back(f, 0, UINT64_MAX);	/* as FileIo does it */
	old = bits[f];
	for (uint64_t line = 0, p; line < FILE_PAGES * EACH; line++) {
		p = place(f, line);
		if (from_none && p != UINT64_MAX)
			unknown[p] = 0;
		/* None is more than what is stored: all that is there. Others hand over whole pages. */
		forced[f][line] = to != &dax_tracker_none && p != UINT64_MAX
			&& (from_none || memchr(was + line / EACH * EACH, 1, EACH));
	}
	if (tracker_switch(&file[f], to, needs_map(to) ? &fresh : NULL, to->extents ? extents : NULL, from_none))
		wrong("a switch fails", f, 0);
	if (needs_map(to))
		bits[f] = fresh;
	else
		dirty_init(&bits[f], arena);
	file[f].dirty = needs_map(to) ? &bits[f] : NULL;
	dirty_destroy(&old);
}

/* All files of a mount, with an extent map of its own; what the old one has for others is flushed. */
static void switch_all(const struct dax_tracker *to)
{
	static struct extent_map fresh;
	struct filemap everything;

	if (to == file[0].tracker)
		return;
	extent_map_init(&fresh, arena, shared.pages);
	filemap_init(&everything);
	everything.tracker = file[0].tracker;
	everything.shared = &shared;
	for (int f = 0; f < FILES; f++)
		switch_to(f, to, &fresh);
	memset(seen, 0, sizeof(seen));
	if (everything.tracker->extents && dax_writeback(&io, &everything, 0, UINT64_MAX, NULL) < 0)
		wrong("the flush after a switch fails", -1, 0);
	filemap_destroy(&everything);
	extent_map_end(&shared);
	shared = fresh;
	for (int f = 0; f < FILES; f++)
		file[f].shared = to->extents ? &shared : NULL;
}

static void one_step(void)
{
	int f = (int)pick(FILES);
	uint64_t first = pick(FILE_PAGES);

	switch (pick(13)) {
	case 0: case 1: case 2: case 3: write_some(f); break;
	case 4: case 5: map_some(f); break;
	case 6: write_back(f, first, first + pick(300)); break;
	case 7: write_back(f, 0, UINT64_MAX); break;
	case 8: cut(f); break;
	case 9: drop_pages(f, first, first + pick(FILE_PAGES - first + 1)); break;
	case 10: take_pages(f); break;
	case 11: grow(); break;
	default: switch_all(KINDS[pick(NKINDS)]);
	}
	for (f = 0; f < FILES; f++) {
		check_superset(f);
		check_no_more(f);
	}
}

static void begin(void)
{
	/* A and B take turns in the region, A on both sides of the gap, B at the end; C is short at first. */
	static const struct iomap a[] = {{0, 150, 16, IOMAP_MAPPED, 0}, {160, 100, 300, IOMAP_MAPPED, 0},
		{300, 61, 450, IOMAP_MAPPED, 0}, {361, 50, 512, IOMAP_MAPPED, 0}};
	static const struct iomap b[] = {{0, 130, 166, IOMAP_MAPPED, 0}, {450, 150, 618, IOMAP_MAPPED, 0}};
	static const struct iomap c[] = {{0, 120, OWN_AT, IOMAP_MAPPED, 0}, {140, 60, OWN_AT + 140, IOMAP_MAPPED, 0}};

	memory = aligned_alloc(PAGE, (size_t)PAGES * PAGE);
	if (!memory || range_add(&ranges, 0, GAP, memory, 0)
	    || range_add(&ranges, NEXT, REGION, memory + NEXT * PAGE, 0)
	    || range_add(&ranges, OWN_AT, PAGES, memory + (size_t)OWN_AT * PAGE, 0))
		exit(2);
	memset(memory, 1, (size_t)PAGES * PAGE);
	ops = (struct daxfs_flush){.store = store, .nt_store = nt_store, .flush = flush, .drain = drain};
	if (seed % 2) {
		void *room = aligned_alloc(64, SLOTS * DIRTY_SLOT_BYTES);

		if (!room || dirty_arena_init(&slots, room, SLOTS * DIRTY_SLOT_BYTES))
			exit(2);
		memset(room, 0xee, SLOTS * DIRTY_SLOT_BYTES);
		arena = &slots;
	}
	extent_map_init(&shared, arena, (REGION + EXTENTS - 1) / EXTENTS);
	own = (struct own_range){.fd = -1, .pfn = OWN_AT, .room = FILE_PAGES, .pages = 200};
	for (int f = 0; f < FILES; f++) {
		filemap_init(&file[f]);
		dirty_init(&bits[f], arena);
		file[f].size = FILE_PAGES * PAGE;
		file[f].tracker = &dax_tracker_pte;
		file[f].dirty = &bits[f];
	}
	if (filemap_splice(&file[0], 0, 0, a, 4) || filemap_splice(&file[1], 0, 0, b, 2)
	    || filemap_splice(&file[2], 0, 0, c, 2))
		exit(2);
	file[2].own = &own;
	file[2].size = own.pages * PAGE;
}

int main(int argc, char **argv)
{
	unsigned long steps;

	if (argc != 3)
		return 2;
	seed = strtoul(argv[1], NULL, 10);
	steps = strtoul(argv[2], NULL, 10);
	turn = seed * 7919 + 1;
	begin();
	for (step = 0; step < steps; step++)
		one_step();
	/* C ends with extents of its own, in a slot if there are any. */
	switch_all(&dax_tracker_none);
	switch_all(&dax_tracker_extent);
	if (tracker_mark(&file[2], 0, PAGE, 0) || (arena && dirty_arena_used(arena) != 2))
		wrong("slots in use", 2, arena ? dirty_arena_used(arena) : 0);
	extent_map_end(&shared);
	for (int f = 0; f < FILES; f++) {
		dirty_destroy(&bits[f]);
		filemap_destroy(&file[f]);
	}
	if (arena && dirty_arena_used(arena))
		wrong("slots that nobody has", -1, dirty_arena_used(arena));
	return 0;
}
