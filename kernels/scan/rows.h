/* Tensors as scan and convolution see them: rows of channels, a token each, in the order of a direction. */

#include "vector.h"

/* A tensor (batch, length, ...) whose remaining dimensions are contiguous, of float32 or bfloat16; strides
 * in elements. Sequences end to end have a batch stride of 0, as has every dimension of size 1. */
typedef struct {
    void *data;
    int64_t batch, token, half;                      /* half: bfloat16 */
} View;

typedef struct {
    int64_t index, first, length, reverse;           /* its first token is the batch's first-th */
} Sequence;

INLINE Sequence sequence_at(const int64_t *offsets, int64_t length, int64_t reverse, int64_t i)
{
    if (!offsets) return (Sequence){i, 0, length, reverse};
    return (Sequence){i, offsets[i], offsets[i + 1] - offsets[i], reverse};
}

/* The rows of a view in the order of the sequence's direction; stride in bytes. */
typedef struct {
    char *first;
    int64_t stride, half;
} Rows;

/* From step `start` of a sequence on, from an offset in each row on. */
INLINE Rows rows(View v, Sequence q, int64_t start, int64_t offset)
{
    Rows r = {0};
    if (!v.data) return r;
    int64_t size = v.half ? sizeof(uint16_t) : sizeof(float);
    int64_t token = q.first + (q.reverse ? q.length - 1 - start : start);
    r.first = (char *)v.data + (q.index * v.batch + token * v.token + offset) * size;
    r.stride = (q.reverse ? -v.token : v.token) * size;
    r.half = v.half;
    return r;
}

INLINE void *row(Rows r, int64_t i) { return r.first + i * r.stride; }

INLINE float *float_row(Rows r, int64_t i) { return row(r, i); }

/* Neighbouring channels of a row, from channel c on. */
INLINE vec load_channels(const void *row, int64_t half, int64_t c, int64_t count)
{
    return half ? load_half((const uint16_t *)row + c, count) : load((const float *)row + c, count);
}

INLINE void store_channels(void *row, int64_t half, int64_t c, vec v, int64_t count)
{
    if (half) store_half((uint16_t *)row + c, v, count);
    else store((float *)row + c, v, count);
}

INLINE vec load_row(Rows r, int64_t i, int64_t count) { return load_channels(row(r, i), r.half, 0, count); }

INLINE void store_row(Rows r, int64_t i, vec v, int64_t count)
{
    store_channels(row(r, i), r.half, 0, v, count);
}
