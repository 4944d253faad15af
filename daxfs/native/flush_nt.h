/* SPDX-License-Identifier: MIT
 *
 * The body of one non-temporal kernel, included by flush_x86.c once for each vector
 * width with these defined: NT_NAME(x), NT_TARGET, NT_VEC, NT_LOAD(p), NT_STREAM(p, v),
 * NT_SET1(byte), NT_BLOCK (lines for each turn of the long loop: all its vectors have
 * to fit in registers). One text for all widths, so that they can't differ.
 * Destinations are line-aligned, sources have any alignment; no fence: drain does that.
 */
#define NT_PER_LINE (DAXFS_LINE / sizeof(NT_VEC))

__attribute__((target(NT_TARGET)))
static void NT_NAME(copy)(char *d, const char *s, size_t n)
{
	NT_VEC v[NT_BLOCK * NT_PER_LINE];

	for (; n >= NT_BLOCK; n -= NT_BLOCK) {
		/* All loads before the first store: the two streams then don't take turns line by line. */
#pragma GCC unroll 16
		for (size_t i = 0; i < NT_BLOCK * NT_PER_LINE; i++)
			v[i] = NT_LOAD((const void *)(s + i * sizeof(NT_VEC)));
#pragma GCC unroll 16
		for (size_t i = 0; i < NT_BLOCK * NT_PER_LINE; i++)
			NT_STREAM((void *)(d + i * sizeof(NT_VEC)), v[i]);
		d += NT_BLOCK * DAXFS_LINE;
		s += NT_BLOCK * DAXFS_LINE;
	}
	for (; n; n--) {
#pragma GCC unroll 4
		for (size_t i = 0; i < NT_PER_LINE; i++)
			v[i] = NT_LOAD((const void *)(s + i * sizeof(NT_VEC)));
#pragma GCC unroll 4
		for (size_t i = 0; i < NT_PER_LINE; i++)
			NT_STREAM((void *)(d + i * sizeof(NT_VEC)), v[i]);
		d += DAXFS_LINE;
		s += DAXFS_LINE;
	}
}

__attribute__((target(NT_TARGET)))
static void NT_NAME(fill)(char *d, int byte, size_t n)
{
	NT_VEC v = NT_SET1((char)byte);

	for (; n; n--) {
#pragma GCC unroll 4
		for (size_t i = 0; i < NT_PER_LINE; i++)
			NT_STREAM((void *)(d + i * sizeof(NT_VEC)), v);
		d += DAXFS_LINE;
	}
}

#undef NT_PER_LINE
#undef NT_NAME
#undef NT_TARGET
#undef NT_VEC
#undef NT_LOAD
#undef NT_STREAM
#undef NT_SET1
#undef NT_BLOCK
