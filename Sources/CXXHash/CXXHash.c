#include "CXXHash.h"

#define XXH_STATIC_LINKING_ONLY
#include <string.h>
#include <xxhash.h>

uint64_t doppel_xxh3_64(const void *data, size_t length, uint64_t seed) {
    return XXH3_64bits_withSeed(data, length, seed);
}

uint64_t doppel_xxh3_64_joined(const void *a, size_t a_length, const void *b, size_t b_length,
                               const void *c, size_t c_length) {
    // Short ones are copied together: that is cheaper than the state of a hash in pieces.
    if (a_length + b_length + c_length <= 256) {
        unsigned char joined[256];
        if (a_length) memcpy(joined, a, a_length);
        if (b_length) memcpy(joined + a_length, b, b_length);
        if (c_length) memcpy(joined + a_length + b_length, c, c_length);
        return XXH3_64bits(joined, a_length + b_length + c_length);
    }
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    if (a_length) XXH3_64bits_update(&state, a, a_length);
    if (b_length) XXH3_64bits_update(&state, b, b_length);
    if (c_length) XXH3_64bits_update(&state, c, c_length);
    return XXH3_64bits_digest(&state);
}
