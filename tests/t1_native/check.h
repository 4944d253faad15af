/* SPDX-License-Identifier: MIT
 *
 * What the C tests of native units share: a check that ends the program with its place and text.
 */
#include <stdio.h>
#include <stdlib.h>

#define CHECK(what) do { \
	if (!(what)) { \
		fprintf(stderr, "line %d: %s\n", __LINE__, #what); \
		abort(); \
	} \
} while (0)
