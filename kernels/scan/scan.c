/* The selective scan on the CPU, forward and backward; reference.py is its definition.
 *
 * Lanes of a vector are neighbouring channels, which share B and C, so the recurrence needs no
 * shuffles: a block of LANES channels keeps its states in registers and walks along the tokens. The
 * tokens are taken in tiles of TILE: per-token work (softplus, gate) is done for the tile first and
 * last, the states are advanced a few at a time in between. All blocks of a part pass a tile before the
 * next tile begins, so that B and C stay in the cache.
 *
 * Backward stores no states but those at the start of each tile. It visits the tiles from last to
 * first, advances the states again, and then runs the adjoint recurrence against the direction of the
 * scan:
 *     g[t] = C[t] dy[t] + exp(dt[t+1] A) g[t+1]
 * Nothing is divided by a decay. B and C receive gradients from all channels: they are summed over
 * blocks per lane, over lanes once a tile, and over parts by the caller, always in the same order. */

#include "vector.h"
#include <stdlib.h>

/* Tokens of a tile, and states in registers at a time. */
enum { TILE = 64 };
#if defined(__AVX512F__)
enum { STATES_FORWARD = 16, STATES_BACKWARD = 4 };
#else
enum { STATES_FORWARD = 2, STATES_BACKWARD = 2 };
#endif

/* A tensor (batch, length, ...) whose remaining dimensions are contiguous; strides in elements.
 * Constant B and C are (1, 1, channels, states) with strides of 0, a group for each channel. */
typedef struct {
    float *data;
    int64_t batch, token;
} View;

/* One call. Absent tensors are NULL. c_scan.py mirrors this layout. */
typedef struct {
    int64_t batch, length, channels, states, B_groups, C_groups, softplus, reverse, threads;
    int64_t parts, checkpoint_floats;                /* set by gigavim_scan_plan */
    View u, dt, B, C, z;                             /* B, C: (batch, length, their groups, states) */
    const float *A, *D, *dt_bias, *h;                /* h: (batch, channels, states) */
    View y;
    float *h_last, *s, *checkpoints;                 /* s: (batch, channels) */
    View dy;
    const float *dh_last, *ds;
    View du, ddt, dz, dB, dC;                        /* dB, dC: those of each part, zeros at first */
    float *dA, *dD, *dbias, *dh;                 /* for each batch */
} Scan;

/* LANES channels that share B and C, or the last few of those. */
typedef struct {
    int64_t index, channel, count;
    int64_t B, C;                                    /* offsets of its groups in a token's B and C */
    float rate;                                      /* largest |A| log2(e) */
    vec D, bias, sum, ds, dD, dbias;
    vec *A, *h, *g, *dA;                             /* (states); A is times log2(e) */
} Block;

/* The rows of a view in the order of the scan, from step `start` on. */
typedef struct {
    float *first;
    int64_t stride;
} Rows;

INLINE Rows rows(const Scan *s, View v, int64_t batch, int64_t start, int64_t offset)
{
    Rows r = {0};
    if (!v.data) return r;
    int64_t token = s->reverse ? s->length - 1 - start : start;
    r.first = v.data + batch * v.batch + token * v.token + offset;
    r.stride = s->reverse ? -v.token : v.token;
    return r;
}

INLINE float *row(Rows r, int64_t i) { return r.first + i * r.stride; }

INLINE int64_t tile_at(const Scan *s, int64_t start)
{
    return s->length - start < TILE ? s->length - start : TILE;
}

/* Step sizes of a tile; returns whether every exponent is small enough to need no clamp. */
INLINE int load_steps(const Scan *s, const Block *k, int64_t batch, int64_t start, vec *step, vec *slope)
{
    int64_t tile = tile_at(s, start);
    Rows dt = rows(s, s->dt, batch, start, k->channel);
    vec longest = {0};
    for (int64_t i = 0; i < tile; i++) {
        vec x = load(row(dt, i), k->count) + k->bias;
        if (s->softplus) x = softplus(x, slope ? slope + i : NULL);
        else if (slope) slope[i] = all(1);
        step[i] = x;
        longest = largest(magnitude(x), longest);
    }
    float most = 0;
    for (int j = 0; j < LANES; j++) most = longest[j] > most ? longest[j] : most;
    return most * k->rate < 126;
}

/* Advance `count` states through a tile and add what they contribute to the output. */
INLINE void advance(const int count, const int clamped, const Block *k, int64_t n, int64_t tile,
                    Rows B, Rows C, const vec *step, const vec *drive, vec *y)
{
    vec h[STATES_FORWARD], A[STATES_FORWARD];
    UNROLL for (int j = 0; j < count; j++) { h[j] = k->h[n + j]; A[j] = k->A[n + j]; }
    for (int64_t i = 0; i < tile; i++) {
        const float *b = row(B, i) + n, *c = row(C, i) + n;
        vec d = step[i], x = drive[i], out = y[i];
        UNROLL for (int j = 0; j < count; j++) {
            vec a = clamped ? exp2_clamped(d, A[j]) : exp2_of(d, A[j]);
            h[j] = a * h[j] + x * b[j];
            out += h[j] * c[j];
        }
        y[i] = out;
    }
    UNROLL for (int j = 0; j < count; j++) k->h[n + j] = h[j];
}

static void forward_tile(const Scan *s, Block *k, int64_t batch, int64_t start)
{
    int64_t tile = tile_at(s, start), states = s->states, count = k->count;
    Rows u = rows(s, s->u, batch, start, k->channel), z = rows(s, s->z, batch, start, k->channel);
    Rows B = rows(s, s->B, batch, start, k->B);
    Rows C = rows(s, s->C, batch, start, k->C);
    Rows out = rows(s, s->y, batch, start, k->channel);
    vec step[TILE], drive[TILE], y[TILE], sum = {0};

    int small = load_steps(s, k, batch, start, step, NULL);
    for (int64_t i = 0; i < tile; i++) {
        vec x = load(row(u, i), count);
        sum += step[i];
        drive[i] = step[i] * x;
        y[i] = k->D * x;
    }
    k->sum += sum;
    int64_t n = 0;
    if (small) {
        for (; n + STATES_FORWARD <= states; n += STATES_FORWARD)
            advance(STATES_FORWARD, 0, k, n, tile, B, C, step, drive, y);
        for (; n < states; n++) advance(1, 0, k, n, tile, B, C, step, drive, y);
    } else {
        for (; n < states; n++) advance(1, 1, k, n, tile, B, C, step, drive, y);
    }
    if (!out.first) return;
    for (int64_t i = 0; i < tile; i++) {
        if (z.first) {
            vec gate = load(row(z, i), count);
            y[i] *= gate * sigmoid(gate);
        }
        store(row(out, i), y[i], count);
    }
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

static int64_t greatest_divisor(int64_t a, int64_t b) { return b ? greatest_divisor(b, a % b) : a; }

/* How many neighbouring channels share both B and C. */
static int64_t sharing(const Scan *s)
{
    return greatest_divisor(s->channels / s->B_groups, s->channels / s->C_groups);
}

static int64_t blocks_of(const Scan *s)
{
    int64_t size = sharing(s);
    return size ? s->channels / size * ((size + LANES - 1) / LANES) : 0;
}

static int64_t tiles_of(const Scan *s) { return (s->length + TILE - 1) / TILE; }

/* The states of a block before a tile, as they lie in its registers. */
static float *checkpoint(const Scan *s, const Block *k, int64_t batch, int64_t tile)
{
    return s->checkpoints + ((batch * tiles_of(s) + tile) * blocks_of(s) + k->index) * s->states * LANES;
}

/* The blocks first..last-1 with room for their vectors; NULL without memory. */
static Block *new_blocks(const Scan *s, int64_t batch, int64_t first, int64_t last)
{
    int64_t states = s->states, size = sharing(s), count = last - first;
    int64_t blocks_sharing = (size + LANES - 1) / LANES;
    size_t bytes = count * (sizeof(Block) + 4 * states * sizeof(vec));
    Block *blocks = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!blocks) return NULL;
    vec *room = (vec *)(blocks + count);
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
        k->ds = s->ds ? load(s->ds + batch * s->channels + k->channel, k->count) : all(0);
        k->sum = k->dD = k->dbias = all(0);
        gather(s->A, k->A, k, states, 1.44269504f);
        int64_t offset = batch * s->channels * states;
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

static int forward_part(const Scan *s, int64_t batch, int64_t part, int64_t first, int64_t last)
{
    (void)part;
    int64_t states = s->states, state = s->channels * states, tiles = tiles_of(s);
    Block *blocks = new_blocks(s, batch, first, last), *end = blocks + (last - first);
    if (!blocks) return 1;
    for (int64_t tile = 0; tile < tiles; tile++)
        for (Block *k = blocks; k < end; k++) {
            if (s->checkpoints) memcpy(checkpoint(s, k, batch, tile), k->h, states * sizeof(vec));
            forward_tile(s, k, batch, tile * TILE);
        }
    for (Block *k = blocks; k < end; k++) {
        scatter(k->h, s->h_last + batch * state, k, states);
        if (s->s) store(s->s + batch * s->channels + k->channel, k->sum, k->count);
    }
    free(blocks);
    return 0;
}

/* Advance `count` states through a tile again, then follow their gradients back through it. */
INLINE void adjoint(const int count, const int clamped, const Block *k, int64_t n, int64_t states,
                    int64_t tile, Rows B, Rows C, const vec *step, const vec *drive, const vec *dy,
                    vec *y, vec *ddrive, vec *dlog, vec *dB, vec *dC)
{
    vec decay[TILE][STATES_BACKWARD], h[TILE + 1][STATES_BACKWARD];
    vec g[STATES_BACKWARD], A[STATES_BACKWARD], dA[STATES_BACKWARD];
    UNROLL for (int j = 0; j < count; j++) {
        h[0][j] = g[j] = k->h[n + j];
        A[j] = k->A[n + j];
    }
    for (int64_t i = 0; i < tile; i++) {
        const float *b = row(B, i) + n, *c = row(C, i) + n;
        vec d = step[i], x = drive[i], out = y[i];
        UNROLL for (int j = 0; j < count; j++) {
            decay[i][j] = clamped ? exp2_clamped(d, A[j]) : exp2_of(d, A[j]);
            g[j] = decay[i][j] * g[j] + x * b[j];
            h[i + 1][j] = g[j];
            out += g[j] * c[j];
        }
        y[i] = out;
    }
    UNROLL for (int j = 0; j < count; j++) { g[j] = k->g[n + j]; dA[j] = k->dA[n + j]; }
    for (int64_t i = tile; i-- > 0;) {
        const float *b = row(B, i) + n, *c = row(C, i) + n;
        vec d = step[i], x = drive[i], e = dy[i], dx = ddrive[i], dl = dlog[i];
        vec *db = dB + i * states + n, *dc = dC + i * states + n;
        UNROLL for (int j = 0; j < count; j++) {
            vec at = g[j] + e * c[j];
            db[j] += at * x;
            dc[j] += e * h[i + 1][j];
            dx += at * b[j];
            g[j] = at * decay[i][j];
            vec slope = g[j] * h[i][j];
            dl += slope * A[j];
            dA[j] += slope * d;
        }
        ddrive[i] = dx;
        dlog[i] = dl;
    }
    UNROLL for (int j = 0; j < count; j++) { k->g[n + j] = g[j]; k->dA[n + j] = dA[j]; }
}

/* Gradients of one block over a tile; those of B and C are added to dB and dC, (tile, states). */
static void backward_tile(const Scan *s, Block *k, int64_t batch, int64_t start, vec *dB, vec *dC)
{
    int64_t tile = tile_at(s, start), states = s->states, count = k->count;
    Rows u = rows(s, s->u, batch, start, k->channel), z = rows(s, s->z, batch, start, k->channel);
    Rows B = rows(s, s->B, batch, start, k->B);
    Rows C = rows(s, s->C, batch, start, k->C);
    Rows dout = rows(s, s->dy, batch, start, k->channel), dz = rows(s, s->dz, batch, start, k->channel);
    Rows du = rows(s, s->du, batch, start, k->channel), ddt = rows(s, s->ddt, batch, start, k->channel);
    vec step[TILE], slope[TILE], drive[TILE], y[TILE], dy[TILE], ddrive[TILE], dlog[TILE];

    int small = load_steps(s, k, batch, start, step, slope);
    for (int64_t i = 0; i < tile; i++) {
        vec x = load(row(u, i), count);
        drive[i] = step[i] * x;
        y[i] = k->D * x;
        dy[i] = dout.first ? load(row(dout, i), count) : all(0);
        if (z.first) {
            vec gate = load(row(z, i), count);
            dy[i] *= gate * sigmoid(gate);
        }
        ddrive[i] = dlog[i] = all(0);
    }
    int64_t n = 0;
    if (small) {
        for (; n + STATES_BACKWARD <= states; n += STATES_BACKWARD)
            adjoint(STATES_BACKWARD, 0, k, n, states, tile, B, C, step, drive, dy, y, ddrive, dlog, dB, dC);
        for (; n < states; n++)
            adjoint(1, 0, k, n, states, tile, B, C, step, drive, dy, y, ddrive, dlog, dB, dC);
    } else {
        for (; n < states; n++)
            adjoint(1, 1, k, n, states, tile, B, C, step, drive, dy, y, ddrive, dlog, dB, dC);
    }
    for (int64_t i = 0; i < tile; i++) {
        vec x = load(row(u, i), count);
        vec dstep = k->ds + ddrive[i] * x + dlog[i] * 0.69314718f;
        store(row(du, i), ddrive[i] * step[i] + k->D * dy[i], count);
        store(row(ddt, i), dstep * slope[i], count);
        k->dbias += dstep * slope[i];
        k->dD += dy[i] * x;
        if (dz.first) {
            vec gate = load(row(z, i), count), open = sigmoid(gate);
            vec dgate = dout.first ? load(row(dout, i), count) * y[i] : all(0);
            store(row(dz, i), dgate * open * (1 + gate * (1 - open)), count);
        }
    }
}

/* Add the sums over lanes to the tile's rows of the part's dB or dC. */
static void add_totals(const Scan *s, View gradient, int64_t unit, int64_t offset, int64_t start, const vec *sums)
{
    Rows to = rows(s, gradient, unit, start, offset);
    if (!to.first) return;
    for (int64_t i = 0; i < tile_at(s, start); i++)
        for (int64_t n = 0; n < s->states; n++) row(to, i)[n] += total(sums[i * s->states + n]);
}

static int backward_part(const Scan *s, int64_t batch, int64_t part, int64_t first, int64_t last)
{
    int64_t states = s->states, state = s->channels * states, unit = batch * s->parts + part;
    size_t size = TILE * states * sizeof(vec);
    Block *blocks = new_blocks(s, batch, first, last), *end = blocks + (last - first);
    vec *dB = aligned_alloc(64, size ? 2 * size : 64), *dC = dB + TILE * states;
    if (!blocks || !dB) {
        free(blocks);
        free(dB);
        return 1;
    }
    for (int64_t tile = tiles_of(s); tile-- > 0;)
        for (Block *k = blocks; k < end; k++) {
            if (k == blocks || k->B != k[-1].B) memset(dB, 0, size);
            if (k == blocks || k->C != k[-1].C) memset(dC, 0, size);
            memcpy(k->h, checkpoint(s, k, batch, tile), states * sizeof(vec));
            backward_tile(s, k, batch, tile * TILE, dB, dC);
            if (k + 1 == end || k->B != k[1].B) add_totals(s, s->dB, unit, k->B, tile * TILE, dB);
            if (k + 1 == end || k->C != k[1].C) add_totals(s, s->dC, unit, k->C, tile * TILE, dC);
        }
    for (Block *k = blocks; k < end; k++) {
        int64_t offset = batch * s->channels + k->channel;
        scatter(k->dA, s->dA + batch * state, k, states);
        scatter(k->g, s->dh + batch * state, k, states);
        store(s->dD + offset, k->dD, k->count);
        store(s->dbias + offset, k->dbias, k->count);
    }
    free(blocks);
    free(dB);
    return 0;
}

/* Run the parts of all batches over the threads; nonzero without memory. */
static int run(const Scan *s, int (*work)(const Scan *, int64_t, int64_t, int64_t, int64_t))
{
    int64_t blocks = blocks_of(s), units = s->batch * s->parts;
    int failed = 0;
#if defined(_OPENMP)
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
#endif
    {
#if defined(__SSE__)
        /* States decay into denormal numbers where nothing comes in; those are slow. */
        unsigned mode = _mm_getcsr();
        _mm_setcsr(mode | 0x8040);
#endif
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
        for (int64_t unit = 0; unit < units; unit++) {
            int64_t batch = unit / s->parts, part = unit % s->parts;
            int64_t first = blocks * part / s->parts, last = blocks * (part + 1) / s->parts;
            if (first < last) failed |= work(s, batch, part, first, last);
        }
#if defined(__SSE__)
        _mm_setcsr(mode);
#endif
    }
    return failed;
}

/* What this is built from, so that c_scan.py never calls a build that its structures do not fit. */
const char *const gigavim_scan_sources = SOURCES;

/* Say into how many parts the channels are cut, so that the threads have equal work, and how much room
 * the checkpoints take. */
void gigavim_scan_plan(Scan *s)
{
    int64_t blocks = blocks_of(s), parts = s->threads / greatest_divisor(s->batch, s->threads);
    s->parts = parts < blocks ? parts : blocks;
    s->checkpoint_floats = s->batch * tiles_of(s) * blocks * s->states * LANES;
}

int gigavim_scan_forward(const Scan *s) { return run(s, forward_part); }
int gigavim_scan_backward(const Scan *s) { return run(s, backward_part); }
