// Attention output and its readouts in one pass over the keys, without the T x T matrix.
//
// 1. Rows are pairs (query, head of one key/value group), query first, so that a group of rows shares its keys and its causal edge.
//    A row sees the keys low <= j < high, less what `keep` and a bias of -inf hide.
// 2. Keys come in tiles. Scores of a tile: register-tiled product of the scaled queries with keys packed as [panel][d][key].
// 3. Online softmax (Milakov & Gimelshein 2018; Dao et al. 2022), per row, with running maximum m and y = s - m <= 0:
//        l = sum exp(y)    X = sum exp(y) y    E = sum exp(y) j    mass[r] = sum of exp(y) over the keys of region r
//    When m rises, everything shrinks by c = exp(m_old - m_new), and X first becomes X + (m_old - m_new) l.
//    Sums inside a tile are float, across tiles double. The key of the maximum is noted only when m rises.
// 4. Region masses: the key axis is cut where the label changes and the weights of each run are added up; labels that change every few keys
//    are added key by key instead.
// 5. Output += weights x values (packed as [panel][key][d]).
// 6. At the end: a sink logit joins the denominator; with M = max(m, sink), L = l exp(m - M) + exp(sink - M), f = exp(m - M) / L:
//    weight sums are f times the sums above, entropy = f ((M - m + ln L) l - X), lse = M + ln L, largest weight = f.
// 7. Few rows (decoding): nothing is packed; keys are cut into chunks of fixed size, whose states (m, l, X, ...) are merged by the rule of step 3.
//
// A row's result depends on neither the number of threads nor its neighbours. No NaN comes from finite input; NaN input comes out as NaN.
// No -ffast-math: the exponential's rounding trick needs strict order, and linking with it would change the whole process's denormals.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include <omp.h>

struct Call {  // mirrored by `_Call` in _native.py; strides count elements, 0 for a broadcast axis
    int64_t batch, heads, kv_heads, queries, keys, d_head, d_value, regions, threads, flags;
    const float *q, *k, *v;
    int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
    const int32_t *low, *high;
    int64_t bounds_batch;
    const uint8_t *keep;
    int64_t keep_batch, keep_head, keep_row;
    const float *bias;
    int64_t bias_batch, bias_head, bias_row;
    const float *sinks;
    const int32_t *labels;
    int64_t labels_batch;
    double scale, softcap;  // softcap 0: none
    float *out, *mass, *entropy, *lse, *max, *distance, *self, *sink;
    int64_t *argmax;
};

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 vector registers
constexpr int ROWS = 12, OUT_VECTORS = 4;
#else  // 16
constexpr int ROWS = 6, OUT_VECTORS = 2;
#endif
constexpr int KEY_VECTORS = 2, PANEL = KEY_VECTORS * W, OUT_ROWS = 6;
constexpr int64_t TILE_FLOATS = 65536;  // of a tile's keys and values together: they should stay in the second-level cache
constexpr int64_t BLOCK_ROWS = 96;      // a multiple of ROWS
constexpr int64_t D_PART = 32;         // products added up before they join a score
constexpr int64_t FEW_ROWS = 8;        // per key/value head: up to here nothing is packed
constexpr int64_t CHUNK_TILES = 4;
constexpr int64_t SHORT_RUN = 8;       // mean run of labels below which masses are added key by key
constexpr int64_t COPIES = 4;          // of the mass counters then, so that equal neighbours do not wait for each other
constexpr float HIDDEN = -1e30f;       // score of a hidden key
constexpr float SEEN = -5e29f;         // anything above was a real score
enum { OK = 0, NO_MEMORY = 1, BAD_BOUNDS = 2, BAD_LABELS = 3 };
enum { WANT_ARGMAX = 1, WANT_MOMENTS = 2 };

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vfu __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint8_t vb __attribute__((vector_size(W)));

inline vf load(const float *p) { return *reinterpret_cast<const vfu *>(p); }
inline void store(float *p, vf x) { *reinterpret_cast<vfu *>(p) = x; }
inline vf splat(float x) { return vf{} + x; }
inline vi iota() {
    vi x;
    for (int i = 0; i < W; ++i) x[i] = i;
    return x;
}
inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

inline float sum(vf x) {
    alignas(64) float t[W];
    store(t, x);
    for (int w = W / 2; w; w /= 2)
        for (int i = 0; i < w; ++i) t[i] += t[i + w];
    return t[0];
}

inline float largest(vf x) {
    alignas(64) float t[W];
    store(t, x);
    for (int w = W / 2; w; w /= 2)
        for (int i = 0; i < w; ++i) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
    return t[0];
}

// exp(y) for -86 <= y <= 88: y = n ln 2 + r, polynomial in r (Cephes), n added to the exponent. Relative error about 1e-7.
inline vf exp_core(vf y) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    vf t = y * 1.44269504088896341f + magic;
    vf n = t - magic;
    vf r = y - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    return (vf)((vi)p + ((vi)t << 23));
}

// tanh: odd polynomial (Cephes) near 0, else 1 - 2 / (exp(2|x|) + 1)
inline vf tanh_vector(vf x) {
    vf a = x < 0.0f ? -x : x;
    vf z = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    vf small = x + x * z * p;
    vf big = 1.0f - 2.0f / (exp_core(a > 20.0f ? splat(40.0f) : a + a) + 1.0f);
    big = x < 0.0f ? -big : big;
    return a < 0.625f ? small : big;
}

// ---------------------------------------------------------------------------------------------------- products

// s[row][key] = sum_d q[d][row] k[d][key], one panel of keys. Large scores would lose digits in one long sum: it is cut into parts.
inline void score_part(const float *q, const float *k, int64_t d_part, bool add, float *s, int64_t ld) {
    vf acc[ROWS][KEY_VECTORS] = {};
    for (int64_t d = 0; d < d_part; ++d, q += ROWS, k += PANEL) {
        vf key[KEY_VECTORS];
#pragma GCC unroll 4
        for (int n = 0; n < KEY_VECTORS; ++n) key[n] = load(k + n * W);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < KEY_VECTORS; ++n) acc[r][n] += q[r] * key[n];
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < KEY_VECTORS; ++n) store(s + r * ld + n * W, add ? load(s + r * ld + n * W) + acc[r][n] : acc[r][n]);
}

inline void score_panel(const float *q, const float *k, int64_t d_head, float *s, int64_t ld) {
    for (int64_t d = 0; d < d_head; d += D_PART)
        score_part(q + d * ROWS, k + d * PANEL, std::min(D_PART, d_head - d), d > 0, s, ld);
}

// o[row][:] += sum_j p[row][j] v[j][:] for N vectors of columns
template <int R, int N>
void add_values(const float *p, int64_t ld, const float *v, int64_t v_row, int64_t keys, float *o, int64_t o_row) {
    vf acc[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[r][n] = load(o + r * o_row + n * W);
    for (int64_t j = 0; j < keys; ++j, v += v_row) {
        vf value[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) value[n] = load(v + n * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[r][n] += p[r * ld + j] * value[n];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(o + r * o_row + n * W, acc[r][n]);
}

template <int R>
void add_values(int n, const float *p, int64_t ld, const float *v, int64_t v_row, int64_t keys, float *o, int64_t o_row) {
    if (n == 1) add_values<R, 1>(p, ld, v, v_row, keys, o, o_row);
    if (n == 2) add_values<R, 2>(p, ld, v, v_row, keys, o, o_row);
    if constexpr (OUT_VECTORS > 2) {
        if (n == 3) add_values<R, 3>(p, ld, v, v_row, keys, o, o_row);
        if (n == 4) add_values<R, 4>(p, ld, v, v_row, keys, o, o_row);
    }
}

#if defined(__clang__) || __GNUC__ >= 12
template <int... I>
struct Lanes {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
    typedef Lanes<I...> type;
};
template <int... I>
inline vf zip(vf a, vf b, bool upper, Lanes<I...>) {
    return upper ? __builtin_shufflevector(a, b, (I / 2 + W / 2 + (I % 2) * W)...) : __builtin_shufflevector(a, b, (I / 2 + (I % 2) * W)...);
}
inline vf zip_low(vf a, vf b) { return zip(a, b, false, Count<W>::type{}); }
inline vf zip_high(vf a, vf b) { return zip(a, b, true, Count<W>::type{}); }
#else
inline vf zip_low(vf a, vf b) {
    vi at = iota();
    return __builtin_shuffle(a, b, at / 2 + (at & 1) * W);
}
inline vf zip_high(vf a, vf b) {
    vi at = iota();
    return __builtin_shuffle(a, b, at / 2 + W / 2 + (at & 1) * W);
}
#endif

// W dot products of one query with W keys. Sums of the W accumulators by a tree of zips: pairing i with i + n/2 leaves them in order.
inline vf score_few(const float *q, const float *const *k, int64_t d_padded) {
    vf a[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        vf x = {};
        for (int64_t d = 0; d < d_padded; d += W) x += load(q + d) * load(k[i] + d);
        a[i] = x;
    }
#pragma GCC unroll 4
    for (int n = W / 2; n; n /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) a[i] = zip_low(a[i], a[i + n]) + zip_high(a[i], a[i + n]);
    return a[0];
}

// ---------------------------------------------------------------------------------------------------- one row

struct Row {
    float m = HIDDEN;    // largest score yet
    float own = HIDDEN;  // score of the row's own key
    double l = 0, X = 0, E = 0;
    int64_t argmax = -1;
};

struct Runs {  // of equal labels; runs[i] covers start[i] <= j < start[i + 1]
    std::vector<int64_t> start;
    std::vector<int32_t> label;
};

struct View {  // what a row sees
    int64_t low = 0, high = 0, own = -1;
    const uint8_t *keep = nullptr;
    const float *bias = nullptr;
};

inline void rescale(Row &row, float to, float *mass, int64_t n_mass, float *o, int64_t n_out) {
    if (row.m > SEEN) {
        float c = std::exp(row.m - to);
        row.X = c * (row.X + (double(row.m) - to) * row.l);
        row.l *= c;
        row.E *= c;
        for (int64_t r = 0; r < n_mass; ++r) mass[r] *= c;
        for (int64_t d = 0; d < n_out; d += W) store(o + d, load(o + d) * c);
    }
    row.m = to;
}

struct Plan {  // of one call
    const Call &c;
    int64_t group = c.heads / c.kv_heads, rows = group * c.queries;  // of one key/value head
    int64_t tile = 0, ld = 0;                                         // keys of a tile, floats of a row of its scores
    int64_t d_padded = up(c.d_head, W), dv_padded = c.v ? up(c.d_value, W) : 0;
    int64_t n_mass = 0;  // counters of region mass of a row
    bool short_runs = false;
    int64_t columns = 0;  // indicators of the regions stand beside the values from dv_padded on; so many floats of a row (0: they don't)
    std::vector<Runs> runs;         // per batch row (or one)
    std::vector<int64_t> from, to;  // keys that any row of the batch row sees
    std::vector<int> widths;        // of the panels of value columns, in vectors

    explicit Plan(const Call &call) : c(call) {}
    bool scatter() const { return short_runs && !columns; }
    int64_t width() const { return dv_padded + columns; }  // of a row of sums that the weights multiply
    View view(int64_t b, int64_t row) const {
        View w;
        const int64_t i = row / group, at = b * c.bounds_batch + i;
        w.low = c.low[at];
        w.high = c.high[at];
        if (w.high <= w.low) w.low = w.high = 0;
        w.own = i + c.keys - c.queries;
        return w;
    }
    void masks(View &w, int64_t b, int64_t h, int64_t i) const {
        if (c.keep) w.keep = c.keep + b * c.keep_batch + h * c.keep_head + i * c.keep_row;
        if (c.bias) w.bias = c.bias + b * c.bias_batch + h * c.bias_head + i * c.bias_row;
    }
};

inline vf partial(const float *p, int64_t n) {
    if (n >= W) return load(p);
    alignas(64) float t[W] = {};
    std::memcpy(t, p, n * sizeof(float));
    return load(t);
}

inline vi partial(const uint8_t *p, int64_t n) {
    vb t = {};
    std::memcpy(&t, p, n >= W ? W : n);
    return __builtin_convertvector(t, vi) != 0;
}

// One row of a tile: scores s[lo..hi) of the keys j0 + lo .. j0 + hi become weights; the rest of s[z0..z1) becomes 0.
template <bool ARGMAX, bool MOMENTS>
void softmax_row(const Plan &plan, int64_t b, const View &view, Row &row, float *s, int64_t j0, int64_t lo, int64_t hi, int64_t z0, int64_t z1, float *mass,
                 float *o) {
    const Call &c = plan.c;
    const vf none = {};
    const int64_t a = lo / W * W, e = up(hi, W);
    for (int64_t j = z0; j < a; j += W) store(s + j, none);
    for (int64_t j = e; j < z1; j += W) store(s + j, none);
    if (c.softcap > 0) {
        const float cap = float(c.softcap), inverse = float(1 / c.softcap);
        for (int64_t j = a; j < e; j += W) store(s + j, cap * tanh_vector(load(s + j) * inverse));
    }
    if (view.bias) {
        const float *bias = view.bias + j0;
        for (int64_t j = a; j < e; j += W) {
            vf x = load(s + j) + partial(bias + j, c.keys - j0 - j);
            store(s + j, x < HIDDEN ? splat(HIDDEN) : x);
        }
    }
    if (view.keep) {
        const uint8_t *keep = view.keep + j0;
        for (int64_t j = a; j < e; j += W) store(s + j, partial(keep + j, c.keys - j0 - j) ? load(s + j) : splat(HIDDEN));
    }
    for (int64_t j = a; j < lo; ++j) s[j] = HIDDEN;
    for (int64_t j = hi; j < e; ++j) s[j] = HIDDEN;

    vf top = splat(HIDDEN);
    vi where = {};
    for (int64_t j = a; j < e; j += W) {
        vf x = load(s + j);
        if (ARGMAX) where = x > top ? vi{} + int32_t(j) : where;
        top = x > top ? x : top;
    }
    const float highest = largest(top);
    if ((view.bias || view.keep) && !(highest > SEEN)) {  // every key hidden, unless a NaN is among them
        bool nan = false;
        for (int64_t j = a; j < e; ++j) nan |= s[j] != s[j];
        if (!nan) {
            for (int64_t j = a; j < e; j += W) store(s + j, none);
            return;
        }
    }
    if (highest > row.m) {
        if (ARGMAX) {
            int64_t first = INT64_MAX;
            for (int i = 0; i < W; ++i)
                if (top[i] == highest) first = std::min<int64_t>(first, where[i] + i);
            row.argmax = j0 + first;
        }
        rescale(row, highest, mass, plan.n_mass, o, o ? plan.width() : 0);
    }
    if (view.own >= j0 + lo && view.own < j0 + hi) row.own = s[view.own - j0];

    const vf m = splat(row.m);
    vf l = {}, x = {}, position = {};
    vf at = __builtin_convertvector(iota() + int32_t(a), vf);
    for (int64_t j = a; j < e; j += W) {
        vf y = load(s + j) - m;
        vf bounded = y < -86.0f ? splat(-86.0f) : y;  // in this order a NaN stays
        vf p = exp_core(bounded);
        p = y < -86.0f ? none : p;
        store(s + j, p);
        l += p;
        if (MOMENTS) {
            x += p * bounded;
            position += p * at;
            at += float(W);
        }
    }
    const double l_tile = sum(l);
    row.l += l_tile;
    if (MOMENTS) {
        row.X += sum(x);
        row.E += sum(position) + double(j0) * l_tile;
    }
    if (!plan.n_mass) return;
    if (plan.scatter()) {
        const int32_t *label = c.labels + b * c.labels_batch + j0;
        const int64_t ld = c.regions + 1;  // the last counter takes keys without a region
        for (int64_t j = lo; j < hi; ++j) {
            const int32_t r = label[j];
            mass[(j % COPIES) * ld + (r < 0 ? c.regions : r)] += s[j];
        }
        return;
    }
    const Runs &runs = plan.runs[c.labels_batch ? b : 0];
    size_t u = std::upper_bound(runs.start.begin(), runs.start.end(), j0 + lo) - runs.start.begin() - 1;
    for (int64_t j = lo; j < hi; ++u) {
        const int64_t end = std::min(hi, runs.start[u + 1] - j0);
        if (runs.label[u] >= 0) {
            vf total = {};
            int64_t i = j;
            for (; i + W <= end; i += W) total += load(s + i);
            if (i < end) total += (iota() < int32_t(end - i)) ? load(s + i) : none;  // the buffer has W floats to spare
            mass[runs.label[u]] += sum(total);
        }
        j = end;
    }
}

typedef void (*SoftmaxRow)(const Plan &, int64_t, const View &, Row &, float *, int64_t, int64_t, int64_t, int64_t, int64_t, float *, float *);
SoftmaxRow choose(int64_t flags) {
    const bool a = flags & WANT_ARGMAX, m = flags & WANT_MOMENTS;
    return a ? (m ? softmax_row<true, true> : softmax_row<true, false>) : (m ? softmax_row<false, true> : softmax_row<false, false>);
}

// Step 6: from sums to statistics
void finish(const Plan &plan, int64_t bk, int64_t flat, const Row &row, const float *mass, const float *o) {
    const Call &c = plan.c;
    const int64_t i = flat / plan.group, batch = bk / c.kv_heads, head = bk % c.kv_heads * plan.group + flat % plan.group;
    const int64_t at = (batch * c.heads + head) * c.queries + i;
    const bool blind = row.l == 0;
    float f = 0, ratio = 1, lse = -INFINITY, sink = 0;
    double log_rest = 0;
    if (!blind) {
        const float logit = c.sinks ? c.sinks[head] : row.m;
        const float M = std::max(row.m, logit);
        ratio = M > row.m ? std::exp(row.m - M) : 1.0f;
        const float extra = c.sinks ? (logit < M ? std::exp(logit - M) : 1.0f) : 0.0f;
        const double L = row.l * ratio + extra;
        f = float(ratio / L);
        sink = float(extra / L);
        const float log_L = std::log(float(L));
        log_rest = double(M - row.m) + log_L;
        lse = M + log_L;
    }
    if (c.out) {
        float *to = c.out + ((batch * c.queries + i) * c.heads + head) * c.d_value;
        for (int64_t d = 0; d < c.d_value; ++d) to[d] = blind ? 0.0f : o[d] * f;
    }
    if (c.mass) {
        float *to = c.mass + at * c.regions;
        for (int64_t r = 0; r < c.regions; ++r) {
            float total = plan.columns ? o[plan.dv_padded + r] : mass[r];
            if (plan.scatter())
                for (int64_t copy = 1; copy < COPIES; ++copy) total += mass[copy * (c.regions + 1) + r];
            to[r] = total * f;
        }
    }
    if (c.entropy) c.entropy[at] = blind ? 0.0f : float(f * (log_rest * row.l - row.X));
    if (c.lse) c.lse[at] = lse;
    if (c.max) c.max[at] = f;
    if (c.distance) c.distance[at] = blind ? 0.0f : float(double(i + c.keys - c.queries) - row.E / row.l);
    if (c.self) c.self[at] = row.own > SEEN ? std::exp(row.own - row.m) * f : 0.0f;
    if (c.sink) c.sink[at] = sink;
    if (c.argmax) c.argmax[at] = row.argmax;
}

// ---------------------------------------------------------------------------------------------------- many rows

struct Memory {  // 64-byte aligned floats, freed on exit
    float *p = nullptr;
    bool get(int64_t floats) {
        void *q = nullptr;
        if (posix_memalign(&q, 64, size_t(std::max<int64_t>(floats, 1)) * sizeof(float))) return false;
        p = static_cast<float *>(q);
        return true;
    }
    ~Memory() { std::free(p); }
};

void pack_keys(const Plan &plan, int64_t bk, int64_t panel, float *to) {
    const Call &c = plan.c;
    const float *k = c.k + bk / c.kv_heads * c.k_batch + bk % c.kv_heads * c.k_head + panel * PANEL * c.k_row;
    const int64_t n = std::min<int64_t>(PANEL, c.keys - panel * PANEL);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t d = 0; d < c.d_head; ++d) to[d * PANEL + j] = k[j * c.k_row + d];
    for (int64_t j = n; j < PANEL; ++j)
        for (int64_t d = 0; d < c.d_head; ++d) to[d * PANEL + j] = 0;
}

void pack_values(const Plan &plan, int64_t bk, int64_t from, int64_t to, float *packed) {
    const Call &c = plan.c;
    const float *v = c.v + bk / c.kv_heads * c.v_batch + bk % c.kv_heads * c.v_head;
    const int32_t *label = c.labels + bk / c.kv_heads * c.labels_batch;
    int64_t column = 0;
    for (int n : plan.widths) {
        const int64_t width = int64_t(n) * W, take = c.v ? std::max<int64_t>(0, std::min(width, c.d_value - column)) : 0;
        float *panel = packed + column * c.keys;
        for (int64_t j = from; j < to; ++j) {
            if (take) std::memcpy(panel + j * width, v + j * c.v_row + column, take * sizeof(float));
            for (int64_t d = take; d < width; ++d) panel[j * width + d] = 0;
            if (!plan.columns || label[j] < 0) continue;
            const int64_t d = plan.dv_padded + label[j] - column;
            if (d >= 0 && d < width) panel[j * width + d] = 1;
        }
        column += width;
    }
}

int many_rows(const Plan &plan) {
    const Call &c = plan.c;
    const int64_t pairs = c.batch * c.kv_heads, panels = up(c.keys, PANEL) / PANEL;
    int64_t block = BLOCK_ROWS;
    while (block > ROWS && block % (2 * ROWS) == 0 && pairs * (up(plan.rows, block) / block) < 16) block /= 2;
    const int64_t blocks = up(plan.rows, block) / block, tasks = pairs * blocks;
    const int64_t groups = block / ROWS, pack_step = 8, packs = up(panels, pack_step) / pack_step;
    const int64_t padded = groups * ROWS, s_floats = up(ROWS * plan.ld + W, 16);
    const int64_t own_floats = up(s_floats + padded * (c.d_head + plan.width() + plan.n_mass), 16);
    const int threads = int(std::max<int64_t>(1, std::min(c.threads, tasks)));
    Memory keys, values, scratch;
    if (!keys.get(pairs * panels * PANEL * c.d_head) || (plan.width() && !values.get(pairs * c.keys * plan.width())) || !scratch.get(own_floats * threads)) return NO_MEMORY;
    std::vector<Row> all_rows(size_t(padded) * threads);
    std::vector<View> all_views(size_t(padded) * threads);
    const SoftmaxRow softmax = choose(c.flags);
    const float scale = float(c.scale);

#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < pairs * packs; ++t) {
            const int64_t bk = t / packs, b = bk / c.kv_heads, p0 = t % packs * pack_step, p1 = std::min(panels, p0 + pack_step);
            if (p1 * PANEL <= plan.from[b] || p0 * PANEL >= plan.to[b]) continue;
            for (int64_t p = p0; p < p1; ++p) pack_keys(plan, bk, p, keys.p + (bk * panels + p) * PANEL * c.d_head);
            if (plan.width()) pack_values(plan, bk, p0 * PANEL, std::min(c.keys, p1 * PANEL), values.p + bk * c.keys * plan.width());
        }
        const int64_t me = omp_get_thread_num();
        float *s = scratch.p + me * own_floats, *q = s + s_floats, *o = q + padded * c.d_head, *mass = o + padded * plan.width();
        Row *rows = all_rows.data() + me * padded;
        View *views = all_views.data() + me * padded;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < tasks; ++t) {  // the last queries first: under a causal mask they cost most
            const int64_t bk = t % pairs, b = bk / c.kv_heads, kv = bk % c.kv_heads, first = (blocks - 1 - t / pairs) * block;
            const int64_t n = std::min(block, plan.rows - first);
            const float *k = keys.p + bk * panels * PANEL * c.d_head, *v = plan.width() ? values.p + bk * c.keys * plan.width() : nullptr;
            int64_t begin = c.keys, end = 0;
            for (int64_t r = 0; r < padded; ++r) {
                rows[r] = Row();
                views[r] = View();
                float *to = q + r / ROWS * ROWS * c.d_head + r % ROWS;
                if (r >= n) {
                    for (int64_t d = 0; d < c.d_head; ++d) to[d * ROWS] = 0;
                    continue;
                }
                const int64_t i = (first + r) / plan.group, head = kv * plan.group + (first + r) % plan.group;
                views[r] = plan.view(b, first + r);
                plan.masks(views[r], b, head, i);
                const float *from = c.q + b * c.q_batch + head * c.q_head + i * c.q_row;
                for (int64_t d = 0; d < c.d_head; ++d) to[d * ROWS] = from[d] * scale;
                if (views[r].high) begin = std::min(begin, views[r].low), end = std::max(end, views[r].high);
            }
            std::fill(o, o + padded * plan.width(), 0.0f);
            std::fill(mass, mass + padded * plan.n_mass, 0.0f);
            for (int64_t j0 = begin / plan.tile * plan.tile; j0 < end; j0 += plan.tile) {
                for (int64_t g = 0; g * ROWS < n; ++g) {
                    View *w = views + g * ROWS;
                    int64_t lo[ROWS], hi[ROWS], g_lo = plan.tile, g_hi = 0;
                    for (int r = 0; r < ROWS; ++r) {
                        lo[r] = std::max<int64_t>(w[r].low - j0, 0);
                        hi[r] = std::min(w[r].high - j0, plan.tile);
                        if (hi[r] <= lo[r]) continue;
                        g_lo = std::min(g_lo, lo[r]);
                        g_hi = std::max(g_hi, hi[r]);
                    }
                    if (g_hi <= g_lo) continue;
                    const int64_t z0 = g_lo / PANEL * PANEL, z1 = up(g_hi, PANEL);
                    for (int64_t j = z0; j < z1; j += PANEL) score_panel(q + g * ROWS * c.d_head, k + (j0 + j) * c.d_head, c.d_head, s + j, plan.ld);
                    for (int r = 0; r < ROWS; ++r) {
                        const int64_t at = g * ROWS + r;
                        if (hi[r] <= lo[r]) {
                            std::fill(s + r * plan.ld + z0, s + r * plan.ld + z1, 0.0f);
                            continue;
                        }
                        softmax(plan, b, w[r], rows[at], s + r * plan.ld, j0, lo[r], hi[r], z0, z1, mass + at * plan.n_mass, v ? o + at * plan.width() : nullptr);
                    }
                    if (!v) continue;
                    for (int half = 0; half < ROWS; half += OUT_ROWS) {
                        int64_t h_lo = plan.tile, h_hi = 0;
                        for (int r = half; r < half + OUT_ROWS; ++r)
                            if (hi[r] > lo[r]) h_lo = std::min(h_lo, lo[r]), h_hi = std::max(h_hi, hi[r]);
                        if (h_hi <= h_lo) continue;
                        int64_t column = 0;
                        for (int width : plan.widths) {
                            const int64_t row_floats = int64_t(width) * W;
                            add_values<OUT_ROWS>(width, s + half * plan.ld + h_lo, plan.ld, v + column * c.keys + (j0 + h_lo) * row_floats, row_floats, h_hi - h_lo,
                                                 o + (g * ROWS + half) * plan.width() + column, plan.width());
                            column += row_floats;
                        }
                    }
                }
            }
            for (int64_t r = 0; r < n; ++r) finish(plan, bk, first + r, rows[r], mass + r * plan.n_mass, o + r * plan.width());
        }
    }
    return OK;
}

// ---------------------------------------------------------------------------------------------------- few rows

int few_rows(const Plan &plan) {
    const Call &c = plan.c;
    const int64_t pairs = c.batch * c.kv_heads, n = plan.rows, chunk = CHUNK_TILES * plan.tile, chunks = std::max<int64_t>(1, up(c.keys, chunk) / chunk), tasks = pairs * chunks;
    const bool copy_k = c.d_head % W, copy_v = c.v && c.d_value % W;
    const int64_t own_floats = up(n * plan.ld + W, 16) + n * plan.d_padded + plan.tile * ((copy_k ? plan.d_padded : 0) + (copy_v ? plan.dv_padded : 0));
    const int64_t state_floats = plan.dv_padded + plan.n_mass;
    const bool small = tasks * chunk * n * (c.d_head + c.d_value) < 200000;  // not worth waking a thread for
    const int threads = small ? 1 : int(std::max<int64_t>(1, std::min(c.threads, tasks)));
    Memory scratch, sums;
    if (!scratch.get(up(own_floats, 16) * threads) || !sums.get(tasks * n * state_floats)) return NO_MEMORY;
    std::vector<Row> states(size_t(tasks * n));
    const SoftmaxRow softmax = choose(c.flags);
    const float scale = float(c.scale);

#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < tasks; ++t) {
        const int64_t bk = t / chunks, b = bk / c.kv_heads, kv = bk % c.kv_heads;
        float *s = scratch.p + omp_get_thread_num() * up(own_floats, 16), *q = s + up(n * plan.ld + W, 16), *k_copy = q + n * plan.d_padded;
        float *v_copy = k_copy + (copy_k ? plan.tile * plan.d_padded : 0);
        Row *rows = states.data() + t * n;
        float *o = sums.p + t * n * state_floats, *mass = o + n * plan.dv_padded;
        std::fill(o, o + n * state_floats, 0.0f);
        View views[FEW_ROWS];
        int64_t begin = c.keys, end = 0;
        for (int64_t r = 0; r < n; ++r) {
            const int64_t i = r / plan.group, head = kv * plan.group + r % plan.group;
            views[r] = plan.view(b, r);
            plan.masks(views[r], b, head, i);
            const float *from = c.q + b * c.q_batch + head * c.q_head + i * c.q_row;
            for (int64_t d = 0; d < plan.d_padded; ++d) q[r * plan.d_padded + d] = d < c.d_head ? from[d] * scale : 0.0f;
            if (views[r].high) begin = std::min(begin, views[r].low), end = std::max(end, views[r].high);
        }
        const float *k = c.k + b * c.k_batch + kv * c.k_head, *v = c.v ? c.v + b * c.v_batch + kv * c.v_head : nullptr;
        const int64_t first = std::max(t % chunks * chunk, begin / plan.tile * plan.tile), last = std::min((t % chunks + 1) * chunk, end);
        for (int64_t j0 = first; j0 < last; j0 += plan.tile) {
            int64_t lo[FEW_ROWS], hi[FEW_ROWS], t_lo = plan.tile, t_hi = 0;
            for (int64_t r = 0; r < n; ++r) {
                lo[r] = std::max<int64_t>(views[r].low - j0, 0);
                hi[r] = std::min(views[r].high - j0, plan.tile);
                if (hi[r] <= lo[r]) continue;
                t_lo = std::min(t_lo, lo[r]);
                t_hi = std::max(t_hi, hi[r]);
            }
            if (t_hi <= t_lo) continue;
            const float *k_tile = k + j0 * c.k_row, *v_tile = v ? v + j0 * c.v_row : nullptr;
            int64_t k_row = c.k_row, v_row = c.v_row;
            if (copy_k) {
                for (int64_t j = t_lo; j < t_hi; ++j)
                    for (int64_t d = 0; d < plan.d_padded; ++d) k_copy[j * plan.d_padded + d] = d < c.d_head ? k_tile[j * k_row + d] : 0.0f;
                k_tile = k_copy, k_row = plan.d_padded;
            }
            if (copy_v) {
                for (int64_t j = t_lo; j < t_hi; ++j)
                    for (int64_t d = 0; d < plan.dv_padded; ++d) v_copy[j * plan.dv_padded + d] = d < c.d_value ? v_tile[j * v_row + d] : 0.0f;
                v_tile = v_copy, v_row = plan.dv_padded;
            }
            const int64_t z0 = t_lo / W * W, z1 = up(t_hi, W);
            for (int64_t j = z0; j < z1; j += W) {
                const float *at[W];
                for (int i = 0; i < W; ++i) at[i] = k_tile + std::max(t_lo, std::min(j + i, t_hi - 1)) * k_row;
                for (int64_t r = 0; r < n; ++r) store(s + r * plan.ld + j, score_few(q + r * plan.d_padded, at, plan.d_padded));
            }
            for (int64_t r = 0; r < n; ++r) {
                if (hi[r] <= lo[r]) {
                    std::fill(s + r * plan.ld + z0, s + r * plan.ld + z1, 0.0f);
                    continue;
                }
                softmax(plan, b, views[r], rows[r], s + r * plan.ld, j0, lo[r], hi[r], z0, z1, mass + r * plan.n_mass, v ? o + r * plan.dv_padded : nullptr);
            }
            if (!v) continue;
            for (int64_t r = 0; r < n;) {
                const int take = n - r >= 6 || n - r == 4 ? 4 : n - r == 5 ? 3 : int(n - r);
                int64_t column = 0;
                for (int width : plan.widths) {
                    const float *p = s + r * plan.ld + t_lo, *values = v_tile + t_lo * v_row + column;
                    float *to = o + r * plan.dv_padded + column;
                    if (take == 1) add_values<1>(width, p, plan.ld, values, v_row, t_hi - t_lo, to, plan.dv_padded);
                    if (take == 2) add_values<2>(width, p, plan.ld, values, v_row, t_hi - t_lo, to, plan.dv_padded);
                    if (take == 3) add_values<3>(width, p, plan.ld, values, v_row, t_hi - t_lo, to, plan.dv_padded);
                    if (take == 4) add_values<4>(width, p, plan.ld, values, v_row, t_hi - t_lo, to, plan.dv_padded);
                    column += int64_t(width) * W;
                }
                r += take;
            }
        }
    }

    for (int64_t bk = 0; bk < pairs; ++bk) {
        for (int64_t r = 0; r < n; ++r) {
            const int64_t at0 = bk * chunks;
            Row &row = states[at0 * n + r];
            float *o = sums.p + at0 * n * state_floats + r * plan.dv_padded, *mass = sums.p + at0 * n * state_floats + n * plan.dv_padded + r * plan.n_mass;
            for (int64_t ch = 1; ch < chunks; ++ch) {
                Row &other = states[(at0 + ch) * n + r];
                if (other.l == 0) continue;
                float *o2 = sums.p + (at0 + ch) * n * state_floats + r * plan.dv_padded;
                float *mass2 = sums.p + (at0 + ch) * n * state_floats + n * plan.dv_padded + r * plan.n_mass;
                if (other.m > row.m) {
                    rescale(row, other.m, mass, plan.n_mass, o, plan.dv_padded);
                    row.argmax = other.argmax;
                } else {
                    rescale(other, row.m, mass2, plan.n_mass, o2, plan.dv_padded);
                }
                row.l += other.l;
                row.X += other.X;
                row.E += other.E;
                row.own = std::max(row.own, other.own);
                for (int64_t i = 0; i < plan.n_mass; ++i) mass[i] += mass2[i];
                for (int64_t d = 0; d < plan.dv_padded; ++d) o[d] += o2[d];
            }
            finish(plan, bk, r, row, mass, o);
        }
    }
    return OK;
}

int run(const Call &c) {
    Plan plan(c);
    const int64_t wanted = TILE_FLOATS / std::max<int64_t>(1, c.d_head + (c.v ? c.d_value : 0));
    plan.tile = std::max<int64_t>(2 * PANEL, std::min<int64_t>(512, wanted)) / PANEL * PANEL;
    plan.ld = plan.tile + W;
    for (int64_t b = 0; b < c.batch; ++b) {
        int64_t from = c.keys, to = 0;
        for (int64_t i = 0; i < c.queries; ++i) {
            const int64_t low = c.low[b * c.bounds_batch + i], high = c.high[b * c.bounds_batch + i];
            if (high <= low) continue;
            if (low < 0 || high > c.keys) return BAD_BOUNDS;
            from = std::min(from, low);
            to = std::max(to, high);
        }
        plan.from.push_back(from);
        plan.to.push_back(to);
    }
    if (c.mass) {
        int64_t n_runs = 0, n_keys = 0;
        for (int64_t b = 0; b < (c.labels_batch ? c.batch : 1); ++b) {
            const int32_t *label = c.labels + b * c.labels_batch;
            Runs runs;
            for (int64_t j = 0; j < c.keys; ++j) {
                if (label[j] < -1 || label[j] >= c.regions) return BAD_LABELS;
                if (j == 0 || label[j] != label[j - 1]) {
                    runs.start.push_back(j);
                    runs.label.push_back(label[j]);
                }
            }
            runs.start.push_back(c.keys);
            n_runs += int64_t(runs.label.size());
            n_keys += c.keys;
            plan.runs.push_back(std::move(runs));
        }
        plan.short_runs = n_runs * SHORT_RUN > n_keys;
        if (plan.short_runs && plan.rows > FEW_ROWS && c.regions <= 2 * W) plan.columns = up(c.regions, W);
        plan.n_mass = plan.columns ? 0 : plan.scatter() ? COPIES * (c.regions + 1) : c.regions;
    }
    for (int64_t left = plan.width() / W; left > 0;) {  // as even as can be: 5 vectors are 3 + 2, not 4 + 1
        const int64_t parts = up(left, OUT_VECTORS) / OUT_VECTORS, width = up(left, parts) / parts;
        plan.widths.push_back(int(width));
        left -= width;
    }
    return plan.rows <= FEW_ROWS ? few_rows(plan) : many_rows(plan);
}

}  // namespace

extern "C" int residue_attend(const Call *call) {
    try {
        return run(*call);
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}

extern "C" int64_t residue_call_bytes() { return int64_t(sizeof(Call)); }
