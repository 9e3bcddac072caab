/* The short causal convolution in front of the scan, with bias and SiLU; conv.py is its definition.
 *
 * A row of output comes of k rows of input: the token's own and those of the k - 1 tokens before it, of
 * which the first tokens find some in the halo. Rows depend on nothing else, so a sequence may be cut
 * anywhere, for the caller as for the threads. */

#include "rows.h"

enum { STEPS = 8, MOST_TAPS = 16 };                  /* c_conv.py knows the latter */

/* One call, all views of one type. library.py mirrors this layout. */
typedef struct {
    int64_t sequences, length, channels, taps, reverse, threads;
    const int64_t *offsets;                          /* of sequences end to end, and of their end */
    const float *weight, *bias;                      /* (taps, channels), the last for the token itself */
    View x, halo, y, next;                           /* halo, next: (sequences, taps - 1, channels) */
} Conv;

/* A sequence with its halo in front, as steps below zero. */
typedef struct {
    Rows x, halo;
    int64_t reach;
} Padded;

INLINE Padded padded(const Conv *s, Sequence q)
{
    int64_t reach = s->taps - 1;
    Sequence edge = {q.index, 0, reach, q.reverse};
    return (Padded){rows(s->x, q, 0, 0), rows(s->halo, edge, 0, 0), reach};
}

INLINE void *padded_row(Padded p, int64_t step)
{
    return step < 0 ? row(p.halo, step + p.reach) : row(p.x, step);
}

/* Steps start..stop-1, at most STEPS, of channels c..c+count-1, whose last inputs stay in registers. */
INLINE void convolve(const int taps, const int half, const int64_t count, const Conv *s, int64_t c,
                     void *const *x, void *const *y, int64_t steps)
{
    vec weight[MOST_TAPS], last[MOST_TAPS], bias = load(s->bias + c, count);
    for (int j = 0; j < taps; j++) {
        weight[j] = load(s->weight + j * s->channels + c, count);
        if (j) last[j] = load_channels(x[j - 1], half, c, count);
    }
    for (int64_t i = 0; i < steps; i++) {
        vec sum = bias;
        for (int j = 0; j < taps; j++) {
            last[j] = j + 1 < taps ? last[j + 1] : load_channels(x[i + j], half, c, count);
            sum += weight[j] * last[j];
        }
        store_channels(y[i], half, c, sum * sigmoid(sum), count);
    }
}

INLINE void convolve_channels(const int taps, const int half, const Conv *s, void *const *x,
                              void *const *y, int64_t steps)
{
    int64_t c = 0;
    for (; c + LANES <= s->channels; c += LANES) convolve(taps, half, LANES, s, c, x, y, steps);
    if (c < s->channels) convolve(taps, half, s->channels - c, s, c, x, y, steps);
}

static void convolve_part(const Conv *s, Sequence q, int64_t part)
{
    Padded p = padded(s, q);
    Rows out = rows(s->y, q, 0, 0);
    int64_t end = q.length * (part + 1) / s->threads;
    for (int64_t start = q.length * part / s->threads; start < end; start += STEPS) {
        int64_t steps = end - start < STEPS ? end - start : STEPS;
        void *x[STEPS + MOST_TAPS], *y[STEPS];
        for (int64_t i = 0; i < steps; i++) y[i] = row(out, start + i);
        for (int64_t i = 0; i < steps + p.reach; i++) x[i] = padded_row(p, start - p.reach + i);
        if (s->taps != 4) convolve_channels(s->taps, out.half, s, x, y, steps);
        else if (out.half) convolve_channels(4, 1, s, x, y, steps);
        else convolve_channels(4, 0, s, x, y, steps);
    }
}

/* What the next chunk needs: the last rows. */
static void save_halo(const Conv *s, Sequence q)
{
    Padded p = padded(s, q);
    Rows next = rows(s->next, (Sequence){q.index, 0, p.reach, q.reverse}, 0, 0);
    size_t size = s->channels * (next.half ? sizeof(uint16_t) : sizeof(float));
    for (int64_t j = 0; j < p.reach; j++)
        memcpy(row(next, j), padded_row(p, q.length - p.reach + j), size);
}

EXPORT int gigavim_conv_forward(const Conv *s)
{
#if defined(_OPENMP)
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
#endif
    for (int64_t unit = 0; unit < s->sequences * s->threads; unit++) {
        Sequence q = sequence_at(s->offsets, s->length, s->reverse, unit / s->threads);
        convolve_part(s, q, unit % s->threads);
        if (unit % s->threads == 0) save_halo(s, q);
    }
    return 0;
}

/* A call of conv_forward, and what comes of its gradients. */
typedef struct {
    Conv conv;                                       /* y and next are not looked at */
    View dy, dnext, dx, dhalo;
    float *dweight, *dbias;                          /* (sequences, taps, channels), (sequences, channels) */
} ConvBackward;

enum { FLUSH = 64 };                                 /* steps summed in registers: long sums lose bits */

/* Channels c..c+count-1 of a sequence. With z = bias + sum of weight_j x_(t - reach + j), dz = dy silu'(z):
 * dweight_j sums dz x_(t - reach + j), and dx_(t - reach + j) gathers weight_j dz until step t + reach - j,
 * when the window has left it. */
INLINE void differentiate(const int taps, const int half, const int64_t count, const ConvBackward *s,
                          Sequence q, int64_t c)
{
    const Conv *conv = &s->conv;
    Padded in = padded(conv, q), out = in;
    Sequence edge = {q.index, 0, in.reach, q.reverse};
    out.x = rows(s->dx, q, 0, 0);
    out.halo = rows(s->dhalo, edge, 0, 0);
    Rows dy = rows(s->dy, q, 0, 0), dnext = rows(s->dnext, edge, 0, 0);
    vec weight[MOST_TAPS], x[MOST_TAPS], dx[MOST_TAPS], dw[MOST_TAPS], sum[MOST_TAPS];
    vec bias = load(conv->bias + c, count), db = all(0), dbias = all(0);
    for (int j = 0; j < taps; j++) {
        weight[j] = load(conv->weight + j * conv->channels + c, count);
        if (j) x[j] = load_channels(padded_row(in, j - taps), half, c, count);
        dx[j] = dw[j] = sum[j] = all(0);
    }
    for (int64_t t = 0; t < q.length; t++) {
        vec z = bias;
        for (int j = 0; j < taps; j++) {
            x[j] = j + 1 < taps ? x[j + 1] : load_channels(row(in.x, t), half, c, count);
            z += weight[j] * x[j];
        }
        vec gate = sigmoid(z), dz = load_channels(row(dy, t), half, c, count) * gate * (1 + z * (1 - gate));
        db += dz;
        for (int j = 0; j < taps; j++) {
            dw[j] += dz * x[j];
            dx[j] += dz * weight[j];
        }
        store_channels(padded_row(out, t - in.reach), half, c, dx[0], count);
        for (int j = 0; j < taps; j++) dx[j] = j + 1 < taps ? dx[j + 1] : all(0);
        if (t % FLUSH != FLUSH - 1 && t + 1 < q.length) continue;
        dbias += db;
        db = all(0);
        for (int j = 0; j < taps; j++) {
            sum[j] += dw[j];
            dw[j] = all(0);
        }
    }
    for (int j = 0; j + 1 < taps; j++) {
        vec last = dx[j] + load_channels(row(dnext, j), half, c, count);
        store_channels(padded_row(out, q.length - in.reach + j), half, c, last, count);
    }
    float *rows_of = s->dweight + q.index * taps * conv->channels + c;
    for (int j = 0; j < taps; j++) store(rows_of + j * conv->channels, sum[j], count);
    store(s->dbias + q.index * conv->channels + c, dbias, count);
}

INLINE void differentiate_channels(const int taps, const int half, const ConvBackward *s, Sequence q, int64_t c)
{
    int64_t count = s->conv.channels - c;
    if (count >= LANES) differentiate(taps, half, LANES, s, q, c);
    else differentiate(taps, half, count, s, q, c);
}

EXPORT int gigavim_conv_backward(const ConvBackward *s)
{
    int64_t groups = (s->conv.channels + LANES - 1) / LANES, taps = s->conv.taps, half = s->dx.half;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(s->conv.threads) schedule(dynamic)
#endif
    for (int64_t unit = 0; unit < s->conv.sequences * groups; unit++) {
        int64_t c = unit % groups * LANES;
        Sequence q = sequence_at(s->conv.offsets, s->conv.length, s->conv.reverse, unit / groups);
        if (taps != 4) differentiate_channels(taps, half, s, q, c);
        else if (half) differentiate_channels(4, 1, s, q, c);
        else differentiate_channels(4, 0, s, q, c);
    }
    return 0;
}
