/* The selective scan on the CPU, forward and backward; reference.py is its definition.
 *
 * Lanes of a vector are neighbouring channels, which share B and C, so the recurrence needs no
 * shuffles: a block of LANES channels keeps its states in registers and walks along the tokens. The
 * tokens are taken in tiles of TILE: per-token work (softplus, gate) is done for the tile first and
 * last, the states are advanced a few at a time in between. All blocks of a part pass a tile before the
 * next tile begins, so that B and C stay in the cache.
 *
 * Channels are cut into parts for the threads. Both directions of a layer may be one call, whose parts
 * the threads share: 24 blocks twice are three rounds on 16 cores, where two calls take four. Where there
 * are fewer blocks than threads, forward cuts the sequence too. Segments are first summarised, all at once:
 * one maps any state h to exp(A s) h + local, where s is the sum of its steps and local what it makes of
 * h = 0. Then each is scanned, from the state that the summaries before it carry the first state to.
 *
 * Backward stores no states but those at the start of each tile. It visits the tiles from last to
 * first, advances the states again, and then runs the adjoint recurrence against the direction of the
 * scan:
 *     g[t] = C[t] dy[t] + exp(dt[t+1] A) g[t+1]
 * Nothing is divided by a decay. B and C receive gradients from all channels: they are summed over
 * blocks per lane, over lanes once a tile, and over parts by the caller, always in the same order. */

#include "scan.h"

/* Advance `count` states through a tile and add what they contribute to the output, if there is one.
 * Bring in the rows of `next`, the next block, which no hardware foresees. */
INLINE void advance(const int count, const int clamped, const int output, const Block *k, int64_t n,
                    int64_t tile, Rows B, Rows C, const vec *step, const vec *drive, vec *y, const Rows next[4])
{
    vec h[STATES_FORWARD], A[STATES_FORWARD];
    UNROLL for (int j = 0; j < count; j++) { h[j] = k->h[n + j]; A[j] = k->A[n + j]; }
    for (int64_t i = 0; i < tile; i++) {
        const float *b = float_row(B, i) + n, *c = output ? float_row(C, i) + n : b;
        vec d = step[i], x = drive[i], out = y[i];
        if (n == 0)
            UNROLL for (int j = 0; j < 4; j++) __builtin_prefetch(row(next[j], i));
        UNROLL for (int j = 0; j < count; j++) {
            vec a = clamped ? exp2_clamped(d, A[j]) : exp2_of(d, A[j]);
            h[j] = a * h[j] + x * b[j];
            if (output) out += h[j] * c[j];
        }
        if (output) y[i] = out;
    }
    UNROLL for (int j = 0; j < count; j++) k->h[n + j] = h[j];
}

INLINE void forward_tile(const int output, const Scan *s, Block *k, Sequence q, int64_t start,
                         int64_t next_channel, int64_t next_start)
{
    int64_t tile = tile_at(q, start), states = s->states, count = k->count;
    Rows u = rows(s->u, q, start, k->channel), z = rows(s->z, q, start, k->channel);
    Rows B = rows(s->B, q, start, k->B);
    Rows C = rows(s->C, q, start, k->C);
    Rows out = rows(s->y, q, start, k->channel);
    const View *needed[4] = {&s->u, &s->dt, &s->z, &s->y};
    Rows next[4];
    for (int j = 0; j < 4; j++)
        next[j] = rows(needed[j]->data ? *needed[j] : s->u, q, next_start, next_channel);
    vec step[TILE], drive[TILE], y[TILE], sum = {0};

    int small = load_steps(s, k, q, start, step, NULL);
    for (int64_t i = 0; i < tile; i++) {
        vec x = load_row(u, i, count);
        sum += step[i];
        drive[i] = step[i] * x;
        y[i] = k->D * x;
    }
    k->sum += sum;
    int64_t n = 0;
    if (small) {
        for (; n + STATES_FORWARD <= states; n += STATES_FORWARD)
            advance(STATES_FORWARD, 0, output, k, n, tile, B, C, step, drive, y, next);
        for (; n < states; n++) advance(1, 0, output, k, n, tile, B, C, step, drive, y, next);
    } else {
        for (; n < states; n++) advance(1, 1, output, k, n, tile, B, C, step, drive, y, next);
    }
    if (!output) return;
    for (int64_t i = 0; i < tile; i++) {
        if (z.first) {
            vec gate = load_row(z, i, count);
            y[i] *= gate * sigmoid(gate);
        }
        store_row(out, i, y[i], count);
    }
}

/* What a segment makes of a state of zero: the sum of its steps, then its states. */
static vec *summary(const Scan *s, const Block *k, Sequence q, int64_t segment)
{
    return s->summaries + ((q.index * s->segments + segment) * s->blocks + k->index) * (1 + s->states);
}

/* Carry a block to the start of a segment. The first segment has left its state itself. */
static void carry(const Scan *s, Block *k, Sequence q, int64_t segment)
{
    for (int64_t i = 0; i < segment; i++) {
        const vec *past = summary(s, k, q, i);
        for (int64_t n = 0; n < s->states; n++)
            k->h[n] = (i ? exp2_clamped(past[0], k->A[n]) * k->h[n] : all(0)) + past[1 + n];
        k->sum += past[0];
    }
}

/* Advance the blocks of a part through a segment: as it is scanned, or from zero for its summary. */
static int advance_part(const Scan *s, Sequence q, int64_t part, int64_t segment, int scans)
{
    int64_t states = s->states, tiles = tiles_of(q), after = segment + 1;
    Block *end, *blocks = new_blocks(s, q, part, &end);
    if (!blocks) return 1;
    for (Block *k = blocks; k < end; k++) {
        if (scans) carry(s, k, q, segment);
        else memset(k->h, 0, states * sizeof(vec));
    }
    for (int64_t i = tiles * segment / s->segments; i < tiles * after / s->segments; i++)
        for (Block *k = blocks; k < end; k++) {
            if (scans && s->checkpoints) memcpy(checkpoint(s, k, q, i), k->h, states * sizeof(vec));
            const Block *next = k + 1 < end ? k + 1 : blocks;
            int64_t next_start = (k + 1 < end ? i : i + 1) * TILE;
            if (scans && s->y.data) forward_tile(1, s, k, q, i * TILE, next->channel, next_start);
            else forward_tile(0, s, k, q, i * TILE, next->channel, next_start);
        }
    for (Block *k = blocks; k < end; k++) {
        if (after == s->segments) {
            scatter(k->h, s->h_last + q.index * s->channels * states, k, states);
            store(s->s + q.index * s->channels + k->channel, k->sum, k->count);
        } else if (segment == 0 || !scans) {
            vec *room = summary(s, k, q, segment);
            room[0] = k->sum;
            memcpy(room + 1, k->h, states * sizeof(vec));
        }
    }
    release(blocks);
    return 0;
}

static int summarise_part(const Scan *s, Sequence q, int64_t part, int64_t segment)
{
    return advance_part(s, q, part, segment, segment == 0);
}

static int forward_part(const Scan *s, Sequence q, int64_t part, int64_t segment)
{
    return advance_part(s, q, part, segment, 1);
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
        const float *b = float_row(B, i) + n, *c = float_row(C, i) + n;
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
        const float *b = float_row(B, i) + n, *c = float_row(C, i) + n;
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
static void backward_tile(const Scan *s, Block *k, Sequence q, int64_t start, vec *dB, vec *dC)
{
    int64_t tile = tile_at(q, start), states = s->states, count = k->count;
    Rows u = rows(s->u, q, start, k->channel), z = rows(s->z, q, start, k->channel);
    Rows B = rows(s->B, q, start, k->B);
    Rows C = rows(s->C, q, start, k->C);
    Rows dout = rows(s->dy, q, start, k->channel), dz = rows(s->dz, q, start, k->channel);
    Rows du = rows(s->du, q, start, k->channel), ddt = rows(s->ddt, q, start, k->channel);
    vec step[TILE], slope[TILE], drive[TILE], y[TILE], dy[TILE], ddrive[TILE], dlog[TILE];

    int small = load_steps(s, k, q, start, step, slope);
    for (int64_t i = 0; i < tile; i++) {
        vec x = load_row(u, i, count);
        drive[i] = step[i] * x;
        y[i] = k->D * x;
        dy[i] = dout.first ? load_row(dout, i, count) : all(0);
        if (z.first) {
            vec gate = load_row(z, i, count);
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
        vec x = load_row(u, i, count);
        vec dstep = k->ds + ddrive[i] * x + dlog[i] * 0.69314718f;
        store_row(du, i, ddrive[i] * step[i] + k->D * dy[i], count);
        store_row(ddt, i, dstep * slope[i], count);
        k->dbias += dstep * slope[i];
        k->dD += dy[i] * x;
        if (dz.first) {
            vec gate = load_row(z, i, count), open = sigmoid(gate);
            vec dgate = dout.first ? load_row(dout, i, count) * y[i] : all(0);
            store_row(dz, i, dgate * open * (1 + gate * (1 - open)), count);
        }
    }
}

/* Add the sums over lanes to the tile's rows of dB or dC, at an offset in each. */
static void add_totals(const Scan *s, View gradient, Sequence q, int64_t offset, int64_t start,
                       const vec *sums)
{
    Rows to = rows(gradient, q, start, offset);
    if (!to.first) return;
    for (int64_t i = 0; i < tile_at(q, start); i++) {
        float *at = float_row(to, i);
        for (int64_t n = 0; n < s->states; n++) at[n] += total(sums[i * s->states + n]);
    }
}

static int backward_part(const Scan *s, Sequence q, int64_t part, int64_t segment)
{
    (void)segment;
    int64_t states = s->states, state = s->channels * states;
    int64_t own_B = part * s->B_groups * states, own_C = part * s->C_groups * states;
    size_t size = TILE * states * sizeof(vec);
    Block *end, *blocks = new_blocks(s, q, part, &end);
    vec *dB = reserve(2 * size), *dC = dB + TILE * states;
    if (!blocks || !dB) {
        release(blocks);
        release(dB);
        return 1;
    }
    for (int64_t i = tiles_of(q); i-- > 0;)
        for (Block *k = blocks; k < end; k++) {
            if (k == blocks || k->B != k[-1].B) memset(dB, 0, size);
            if (k == blocks || k->C != k[-1].C) memset(dC, 0, size);
            memcpy(k->h, checkpoint(s, k, q, i), states * sizeof(vec));
            backward_tile(s, k, q, i * TILE, dB, dC);
            if (k + 1 == end || k->B != k[1].B) add_totals(s, s->dB, q, own_B + k->B, i * TILE, dB);
            if (k + 1 == end || k->C != k[1].C) add_totals(s, s->dC, q, own_C + k->C, i * TILE, dC);
        }
    for (Block *k = blocks; k < end; k++) {
        int64_t offset = q.index * s->channels + k->channel;
        scatter(k->dA, s->dA + q.index * state, k, states);
        scatter(k->g, s->dh + q.index * state, k, states);
        store(s->dD + offset, k->dD, k->count);
        store(s->dbias + offset, k->dbias, k->count);
    }
    release(blocks);
    release(dB);
    return 0;
}

/* Run the parts of all sequences, in segments from..to-1, over the threads, which take those of one scan
 * and of the other in turn; nonzero without memory. */
static int run(const Scan *s, int (*work)(const Scan *, Sequence, int64_t, int64_t), int64_t from, int64_t to)
{
    int64_t scans = s->other ? 2 : 1, segments = to - from;
    int64_t units = scans * s->sequences * s->parts * segments;
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
#pragma omp for schedule(dynamic)
#endif
        for (int64_t unit = 0; unit < units; unit++) {
            const Scan *one = unit % scans ? s->other : s;
            int64_t segment = unit / scans % segments, part = unit / scans / segments % s->parts;
            Sequence q = sequence_of(one, unit / scans / segments / s->parts);
            failed |= work(one, q, part, from + segment);
        }
#if defined(__SSE__)
        _mm_setcsr(mode);
#endif
    }
    return failed;
}

/* What this is built from, so that library.py never calls a build that its structures do not fit. */
EXPORT const char *const gigavim_sources = SOURCES;
EXPORT const int64_t gigavim_scan_lanes = LANES, gigavim_scan_tile = TILE;

EXPORT int gigavim_scan_forward(Scan *s)
{
    if (s->segments == 1) return run(s, forward_part, 0, 1);
    size_t bytes = s->sequences * s->segments * s->blocks * (1 + s->states) * sizeof(vec);
    int64_t last = s->segments - 1;
    int failed = 0;
    for (Scan *one = s; one; one = one->other) failed |= !(one->summaries = reserve(bytes));
    /* Without an output, nothing but the last state is wanted. */
    failed = failed || run(s, summarise_part, 0, last)
          || run(s, forward_part, s->y.data ? 1 : last, last + 1);
    for (Scan *one = s; one; one = one->other) release(one->summaries);
    return failed;
}

EXPORT int gigavim_scan_backward(Scan *s) { return run(s, backward_part, 0, 1); }
