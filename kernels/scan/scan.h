/* What forward and backward of the scan share: the call, its tensors by rows, and blocks of channels. */

#include "rows.h"

/* Tokens of a tile, and states in registers at a time. */
enum { TILE = 64 };
#if defined(__AVX512F__)
enum { STATES_FORWARD = 16, STATES_BACKWARD = 4 };
#else
enum { STATES_FORWARD = 2, STATES_BACKWARD = 2 };
#endif

/* One call. Absent tensors are NULL; B, C and their gradients are of float32. library.py mirrors this layout.
 * Constant B and C are (1, 1, channels, states), a group for each channel. */
typedef struct Scan {
    struct Scan *other;                              /* to be run along with it, of the same shape */
    int64_t sequences, length, channels, states, B_groups, C_groups, softplus, reverse;
    int64_t sharing, blocks;                         /* channels that share B and C; blocks in all */
    int64_t threads, parts, segments;
    const int64_t *offsets;                          /* of sequences end to end, and of their end */
    View u, dt, B, C, z;                             /* B, C: (batch, length, their groups, states) */
    const float *A, *D, *dt_bias, *h;                /* h: (sequences, channels, states) */
    View y;
    float *h_last, *s, *checkpoints;                 /* s: (sequences, channels) */
    vec *summaries;                                  /* room that gigavim_scan_forward finds */
    View dy;
    const float *dh_last, *ds;
    View du, ddt, dz, dB, dC;                        /* dB, dC: with (parts) before groups, zeros at first */
    float *dA, *dD, *dbias, *dh;                     /* for each sequence */
} Scan;

INLINE Sequence sequence_of(const Scan *s, int64_t i)
{
    return sequence_at(s->offsets, s->length, s->reverse, i);
}

/* LANES channels that share B and C, or the last few of those. */
typedef struct {
    int64_t index, channel, count;
    int64_t B, C;                                    /* offsets of its groups in a token's B and C */
    float rate;                                      /* largest |A| log2(e) */
    vec D, bias, sum, ds, dD, dbias;
    vec *A, *h, *g, *dA;                             /* (states); A is times log2(e) */
} Block;

INLINE int64_t tiles_of(Sequence q) { return (q.length + TILE - 1) / TILE; }

INLINE int64_t tile_at(Sequence q, int64_t start)
{
    return q.length - start < TILE ? q.length - start : TILE;
}

/* Step sizes of a tile; returns whether every exponent is small enough to need no clamp. */
INLINE int load_steps(const Scan *s, const Block *k, Sequence q, int64_t start, vec *step, vec *slope)
{
    int64_t tile = tile_at(q, start);
    Rows dt = rows(s->dt, q, start, k->channel);
    vec longest = {0};
    for (int64_t i = 0; i < tile; i++) {
        vec x = load_row(dt, i, k->count) + k->bias;
        if (s->softplus) x = softplus(x, slope ? slope + i : NULL);
        else if (slope) slope[i] = all(1);
        step[i] = x;
        longest = largest(magnitude(x), longest);
    }
    float most = 0;
    for (int j = 0; j < LANES; j++) most = longest[j] > most ? longest[j] : most;
    return most * k->rate < 126;
}

/* Between (channels, states) in memory and a block's vectors. */
static void gather(const float *from, vec *to, const Block *k, int64_t states, float scale)
{
    for (int64_t n = 0; n < states; n++) to[n] = all(0);
    if (!from) return;
    for (int64_t c = 0; c < k->count; c++)
        for (int64_t n = 0; n < states; n++) to[n][c] = scale * from[(k->channel + c) * states + n];
}

static void scatter(const vec *from, float *to, const Block *k, int64_t states)
{
    for (int64_t c = 0; c < k->count; c++)
        for (int64_t n = 0; n < states; n++) to[(k->channel + c) * states + n] = from[n][c];
}

/* The states of a block before a tile, as they lie in its registers. */
static float *checkpoint(const Scan *s, const Block *k, Sequence q, int64_t tile)
{
    /* Sequences of any lengths have room for their tiles when each has one to spare. */
    int64_t first = (s->offsets ? q.first : q.index * s->length) / TILE + q.index;
    return s->checkpoints + ((first + tile) * s->blocks + k->index) * s->states * LANES;
}

/* The blocks of a part with room for their vectors; NULL without memory. */
static Block *new_blocks(const Scan *s, Sequence q, int64_t part, Block **end)
{
    int64_t first = s->blocks * part / s->parts, count = s->blocks * (part + 1) / s->parts - first;
    int64_t states = s->states, size = s->sharing;
    int64_t blocks_sharing = (size + LANES - 1) / LANES;
    size_t bytes = count * (sizeof(Block) + 4 * states * sizeof(vec));
    Block *blocks = reserve(bytes);
    if (!blocks) return NULL;
    *end = blocks + count;
    vec *room = (vec *)*end;
    for (int64_t i = 0; i < count; i++) {
        Block *k = blocks + i;
        k->index = first + i;
        int64_t start = k->index % blocks_sharing * LANES;
        k->channel = k->index / blocks_sharing * size + start;
        k->count = size - start < LANES ? size - start : LANES;
        k->B = k->channel * s->B_groups / s->channels * states;
        k->C = k->channel * s->C_groups / s->channels * states;
        k->A = room, k->h = room + states, k->g = room + 2 * states, k->dA = room + 3 * states;
        room += 4 * states;
        k->D = s->D ? load(s->D + k->channel, k->count) : all(0);
        k->bias = s->dt_bias ? load(s->dt_bias + k->channel, k->count) : all(0);
        k->ds = s->ds ? load(s->ds + q.index * s->channels + k->channel, k->count) : all(0);
        k->sum = k->dD = k->dbias = all(0);
        gather(s->A, k->A, k, states, 1.44269504f);
        int64_t offset = q.index * s->channels * states;
        gather(s->h ? s->h + offset : NULL, k->h, k, states, 1);
        gather(s->dh_last ? s->dh_last + offset : NULL, k->g, k, states, 1);
        vec rate = {0};
        for (int64_t n = 0; n < states; n++) {
            rate = largest(magnitude(k->A[n]), rate);
            k->dA[n] = all(0);
        }
        k->rate = 0;
        for (int j = 0; j < LANES; j++) k->rate = rate[j] > k->rate ? rate[j] : k->rate;
    }
    return blocks;
}
