// XXH3 as one call that Swift can import: the library's own header is macros.
#ifndef DOPPEL_CXXHASH_H
#define DOPPEL_CXXHASH_H
#include <stddef.h>
#include <stdint.h>
uint64_t doppel_xxh3_64(const void *data, size_t length, uint64_t seed);
#endif
