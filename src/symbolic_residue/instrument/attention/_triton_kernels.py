"""Triton kernels of the GPU backend; imported by ``_triton`` only, and only where triton is installed.

One program owns ``BLOCK_M`` rows of one key-value head and walks the keys that any of them may see, ``BLOCK_N`` at a time:

1. *Rows.* The query heads that share a key-value head are packed into the row axis (``row = query · GROUPS + group``): K is loaded once for
   all of them, never repeated, and a single decode row still fills a tile.
2. *Scores*, in base 2: ``s = log₂e · (cap(scale · q·k) + bias)``, −∞ where the interval ``low ≤ j < high`` or ``keep`` hides the key.
3. *Online softmax* (Milakov & Gimelshein, arXiv:1805.02867; Dao, arXiv:2307.08691): running maximum ``m``, ``w_j = 2^(s_j − m)``, ``l = Σ w_j`` (``norm``).
   When the maximum rises by ``m' − m``, every sum is scaled by ``c = 2^(m − m')``.
4. *Entropy* from ``X = Σ w_j (s_j − m)``, whose rescaling is ``X' = c · (X + (m − m') · l)``; then ``H = ln 2 · (l log₂ Z − X) / Z``.
5. *Region masses*: where a tile of keys lies in one region (looked up, one number a tile), the region receives the tile's ``Σ w`` that the softmax
   needs anyway; only a mixed tile multiplies ``w`` with a one-hot indicator built from the labels in registers.
6. *Mean distance* ``Σ w_j (own − j)``, tile by tile from the tile's first key, so that float32 loses nothing at long contexts.
7. A *sink* enters once, at the end: ``Z = l + 2^(sink − m)``.

With ``KNOWN`` the log-sum-exp is given: ``m`` is fixed to it, Z = 1, nothing is rescaled and V is not read. A pointer that is None leaves its
computation out of the compiled kernel. ``UPCAST`` is for triton's interpreter, whose dot does not know bfloat16: products of two bfloat16 are
exact in float32, so the numbers are those of the tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import OutOfResources

__all__ = ["MIXED", "OutOfResources", "attend_kernel", "received_kernel"]

# What follows is triton's language in Python's syntax: names under a compile-time condition are bound where it holds, and triton may be absent.
# pyright: reportMissingImports=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

MIXED = -2
"""Region of a tile whose keys lie in several."""

_MIXED = tl.constexpr(MIXED)
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def _tanh(x):
    """tanh in float32 to 3e-7, relative: by its series near 0, where the quotient cancels (the hardware's approximation is good to 5e-4 only)."""
    y = x * x
    series = x * (1.0 + y * (-1.0 / 3.0 + y * (2.0 / 15.0 - y * (17.0 / 315.0))))
    return tl.where(y < 0.04, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def _scores(dot, key, inside, row_bias, bias_k, row_keep, keep_k, score_scale, cap, SOFTCAP: tl.constexpr):
    """Base-2 scores ``[row, key]`` from the products q·k; −∞ where hidden."""
    s = dot * score_scale
    if SOFTCAP:
        s = cap * _tanh(s)
    if row_keep is not None:
        inside = inside & (tl.load(row_keep[:, None] + key[None, :].to(tl.int64) * keep_k, mask=inside, other=0) != 0)
    if row_bias is not None:
        s += tl.load(row_bias[:, None] + key[None, :].to(tl.int64) * bias_k, mask=inside, other=0.0) * _LOG2E
    return tl.where(inside, s, float("-inf"))


@triton.jit
def _add_masses(masses, w, one_hot, UPCAST: tl.constexpr):
    """``masses + w @ one_hot`` with w at its full 24 bits: three bfloat16 parts on the tensor cores, the indicator being exact."""
    indicator = one_hot.to(tl.float32).to(tl.bfloat16)  # by way of float32: the interpreter would read a truth value's bits
    if UPCAST:
        indicator = indicator.to(tl.float32)
    for _ in tl.static_range(3):
        part = w.to(tl.bfloat16)
        w = w - part.to(tl.float32)
        if UPCAST:
            masses = tl.dot(part.to(tl.float32), indicator, masses, input_precision="ieee")
        else:
            masses = tl.dot(part, indicator, masses)
    return masses


@triton.jit
def attend_kernel(
    q,  # [batch, head, query, d_head]
    k,  # [batch, kv_head, key, d_head]
    v,  # [batch, kv_head, key, d_value] or None
    low,  # [batch or 1, query] int32
    high,
    own,  # [query] int32: each row's own key; None when neither distance nor self is wanted
    keep,  # uint8, or None
    bias,  # float32, or None
    sinks,  # [head] float32, or None
    known,  # [batch, head, query] float32 log-sum-exp (nats), or None
    labels,  # [batch or 1, key] int32; None when no mass is wanted
    uniform,  # [batch or 1, tile] int32: the region of all keys of a tile, or MIXED
    out,  # [batch, query, head, d_value]
    mass,  # [batch, head, query, region]
    entropy,  # [batch, head, query], as all below
    lse, top, argmax, distance, self_weight, sink,
    score_scale, cap, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, interval_b, keep_b, keep_h, keep_q, keep_k, bias_b, bias_h,
    bias_q, bias_k, labels_b, uniform_b,
    n_queries, n_keys, n_kv, n_blocks, n_regions,
    GROUPS: tl.constexpr, D_HEAD: tl.constexpr, D_VALUE: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr,
    R_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr, KNOWN: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Attention output and statistics of one block of rows. Grid: (blocks · kv_heads · batch, chunks of ``R_PAD`` regions)."""
    # Later blocks first: under a causal mask they are the longest, and the short ones fill the gaps at the end.
    block = n_blocks - 1 - tl.program_id(0) % n_blocks
    rest = tl.program_id(0) // n_blocks
    kv = rest % n_kv
    b = (rest // n_kv).to(tl.int64)

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    query = row // GROUPS
    head = kv * GROUPS + row % GROUPS
    exists = query < n_queries
    query64 = query.to(tl.int64)
    head64 = head.to(tl.int64)

    # Intervals are cut to the keys that exist, so that no load can leave the tensors.
    first = tl.maximum(tl.load(low + b * interval_b + query, mask=exists, other=0), 0)
    last = tl.minimum(tl.load(high + b * interval_b + query, mask=exists, other=0), n_keys)
    some = last > first
    begin = tl.min(tl.where(some, first, _FAR), 0)
    end = tl.max(tl.where(some, last, 0), 0)
    begin = tl.minimum(begin, end) // BLOCK_N * BLOCK_N

    column = tl.arange(0, D_PAD)
    within = column < D_HEAD
    tile = tl.arange(0, BLOCK_N)
    queries = tl.load(
        q + b * q_b + (head64 * q_h + query64 * q_t)[:, None] + column[None, :], mask=exists[:, None] & within[None, :], other=0.0
    )
    key_ptrs = k + b * k_b + kv.to(tl.int64) * k_h + (begin + tile).to(tl.int64)[None, :] * k_t + column[:, None]
    if UPCAST:
        queries = queries.to(tl.float32)
    if v is not None:
        column_v = tl.arange(0, DV_PAD)
        within_v = column_v < D_VALUE
        value_ptrs = v + b * v_b + kv.to(tl.int64) * v_h + (begin + tile).to(tl.int64)[:, None] * v_t + column_v[None, :]
        acc = tl.zeros((BLOCK_M, DV_PAD), tl.float32)
    row_bias = None
    if bias is not None:
        row_bias = bias + b * bias_b + head64 * bias_h + query64 * bias_q
    row_keep = None
    if keep is not None:
        row_keep = keep + b * keep_b + head64 * keep_h + query64 * keep_q

    norm = tl.zeros((BLOCK_M,), tl.float32)
    at = (b * (n_kv * GROUPS) + head) * n_queries + query  # of the row in [batch, head, query]
    if KNOWN:
        given = tl.load(known + at, mask=exists, other=float("-inf"))
        # Kernels in the field report a row without keys as −∞, +∞ or NaN.
        some = some & (tl.abs(given) < float("inf"))
        base = tl.where(some, given * _LOG2E, 0.0)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    else:
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if entropy is not None:
        x = tl.zeros((BLOCK_M,), tl.float32)
    if argmax is not None:
        arg = tl.full((BLOCK_M,), -1, tl.int32)
    if own is not None:
        own_key = tl.load(own + query, mask=exists, other=0)
        own_score = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        own_first = tl.min(tl.where(exists, own_key, _FAR), 0)
        own_last = tl.max(tl.where(exists, own_key, -1), 0)
    if distance is not None:
        d = tl.zeros((BLOCK_M,), tl.float32)
    if mass is not None:
        region = tl.program_id(1) * R_PAD + tl.arange(0, R_PAD)
        masses = tl.zeros((BLOCK_M, R_PAD), tl.float32)

    for start in range(begin, end, BLOCK_N):
        key = start + tile
        keys = tl.load(key_ptrs, mask=within[:, None] & (key < n_keys)[None, :], other=0.0)
        if UPCAST:
            keys = keys.to(tl.float32)
        inside = (key[None, :] >= first[:, None]) & (key[None, :] < last[:, None])
        if KNOWN:
            inside = inside & some[:, None]
        s = _scores(
            tl.dot(queries, keys, input_precision="ieee"),
            key,
            inside,
            row_bias,
            bias_k,
            row_keep,
            keep_k,
            score_scale,
            cap,
            SOFTCAP,
        )
        if KNOWN:
            if (top is not None) or (argmax is not None) or (sink is not None):
                best = tl.max(s, 1)
                if argmax is not None:
                    place = tl.min(tl.where(s == best[:, None], key[None, :], _FAR), 1)
                    arg = tl.where(best > highest, place, arg)
                highest = tl.maximum(highest, best)
        else:
            best = tl.max(s, 1)
            if argmax is not None:
                place = tl.min(tl.where(s == best[:, None], key[None, :], _FAR), 1)
                arg = tl.where(best > m, place, arg)  # strictly: the first of equals stays
            risen = tl.maximum(m, best)
            base = tl.where(risen == float("-inf"), 0.0, risen)  # nothing seen so far: −∞ − (−∞) would be NaN
            c = tl.exp2(m - base)
        shifted = s - base[:, None]
        w = tl.exp2(shifted)
        total = tl.sum(w, 1)
        if entropy is not None:
            if not KNOWN:
                x = c * (x + tl.where(m == float("-inf"), 0.0, m - base) * norm)
            x += tl.sum(w * tl.where(w > 0.0, shifted, 0.0), 1)
        if distance is not None:
            if not KNOWN:
                d = d * c
            d += (own_key - start).to(tl.float32) * total - tl.sum(w * tile.to(tl.float32)[None, :], 1)
        if self_weight is not None:  # noqa: SIM102 (this is the compiler's condition, the next one the device's)
            if (start <= own_last) & (start + BLOCK_N > own_first):
                own_score = tl.maximum(own_score, tl.max(tl.where(key[None, :] == own_key[:, None], s, float("-inf")), 1))
        if mass is not None:
            if not KNOWN:
                masses = masses * c[:, None]
            only = tl.load(uniform + b * uniform_b + start // BLOCK_N)
            if only == _MIXED:
                label = tl.load(labels + b * labels_b + key, mask=key < n_keys, other=-1)
                masses = _add_masses(masses, w, label[:, None] == region[None, :], UPCAST)
            else:
                masses += tl.where(region[None, :] == only, total[:, None], 0.0)
        if v is not None:
            values = tl.load(value_ptrs, mask=(key < n_keys)[:, None] & within_v[None, :], other=0.0)
            weights = w.to(values.dtype)
            if UPCAST:
                values = values.to(tl.float32)
                weights = weights.to(tl.float32)
            if not KNOWN:
                acc = acc * c[:, None]
            acc = tl.dot(weights, values, acc, input_precision="ieee")
            value_ptrs += BLOCK_N * v_t
        if KNOWN:
            norm += total
        else:
            norm = norm * c + total
            m = risen
        key_ptrs += BLOCK_N * k_t

    if distance is not None:
        # A ratio, so neither the sink nor the scale of w matters.
        mean = tl.where(norm > 0.0, d / tl.where(norm > 0.0, norm, 1.0), 0.0)
        tl.store(distance + at, mean, mask=exists)
    if KNOWN:
        if (top is not None) or (argmax is not None) or (sink is not None):
            some = some & (highest > float("-inf"))
        final = base
        c = tl.where(some, 1.0, 0.0)
        z = tl.full((BLOCK_M,), 1.0, tl.float32)
    else:
        highest = m
        some = m > float("-inf")
        final = tl.where(some, m, 0.0)
        extra = tl.zeros((BLOCK_M,), tl.float32)
        c = tl.where(some, 1.0, 0.0)
        if sinks is not None:
            logit = tl.load(sinks + head, mask=exists, other=float("-inf")).to(tl.float32) * _LOG2E
            final = tl.maximum(final, tl.where(some, logit, 0.0))
            c = tl.where(some, tl.exp2(m - final), 0.0)
            extra = tl.where(some, tl.exp2(logit - final), 0.0)
        z = tl.where(some, norm * c + extra, 1.0)
    # From here on: c scales every sum, and is 0 for a row that sees nothing.
    if entropy is not None:
        if not KNOWN:
            x = x + tl.where(some, m - final, 0.0) * norm
        h = _LN2 * (tl.log2(z) * (norm * c) - x * c) / z
        tl.store(entropy + at, tl.maximum(h, 0.0), mask=exists)
    if lse is not None:
        tl.store(lse + at, tl.where(some, (final + tl.log2(z)) * _LN2, float("-inf")), mask=exists)
    if top is not None:
        tl.store(top + at, tl.where(some, tl.minimum(tl.exp2(highest - final) / z, 1.0), 0.0), mask=exists)
    if argmax is not None:
        tl.store(argmax + at, tl.where(some, arg, -1).to(tl.int64), mask=exists)
    if self_weight is not None:
        tl.store(self_weight + at, tl.where(some, tl.exp2(own_score - final) / z, 0.0), mask=exists)
    if sink is not None:
        if KNOWN:
            tl.store(sink + at, tl.where(some, tl.maximum(1.0 - norm, 0.0), 0.0), mask=exists)
        else:
            tl.store(sink + at, extra / z, mask=exists)
    if mass is not None:
        tl.store(
            mass + at[:, None] * n_regions + region[None, :],
            masses * (c / z)[:, None],
            mask=exists[:, None] & (region < n_regions)[None, :],
        )
    if v is not None:
        place_out = ((b * n_queries + query) * (n_kv * GROUPS) + head) * D_VALUE
        tl.store(
            out + place_out[:, None] + column_v[None, :],
            (acc * (c / z)[:, None]).to(out.dtype.element_ty),
            mask=exists[:, None] & within_v[None, :],
        )


@triton.jit
def received_kernel(
    q,  # [batch, head, query, d_head]
    k,  # [batch, kv_head, key, d_head]
    low,  # [batch or 1, query] int32
    high,
    reach_low,  # [batch or 1, block of queries] int32: smallest low and largest high of the block's rows
    reach_high,
    keep,
    bias,
    known,  # [batch, head, query] float32 log-sum-exp (nats)
    received,  # [batch, head, key]
    score_scale, cap, q_b, q_h, q_t, k_b, k_h, k_t, interval_b, reach_b, keep_b, keep_h, keep_q, keep_k, bias_b, bias_h, bias_q,
    bias_k,
    n_queries, n_keys, n_heads, n_blocks,
    GROUPS: tl.constexpr, D_HEAD: tl.constexpr, D_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SOFTCAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Attention that a block of keys receives, ``Σ_i p_ij``. Grid: (blocks of keys · heads · batch).

    A program owns its keys and walks the rows, so the sum has one fixed order and needs no atomics.
    """
    block = tl.program_id(0) % n_blocks
    rest = tl.program_id(0) // n_blocks
    head = rest % n_heads
    b = (rest // n_heads).to(tl.int64)
    head64 = head.to(tl.int64)
    start = block * BLOCK_N
    key = start + tl.arange(0, BLOCK_N)
    column = tl.arange(0, D_PAD)
    within = column < D_HEAD
    keys = tl.load(
        k + b * k_b + (head64 // GROUPS) * k_h + key.to(tl.int64)[None, :] * k_t + column[:, None],
        mask=within[:, None] & (key < n_keys)[None, :],
        other=0.0,
    )
    if UPCAST:
        keys = keys.to(tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for row_start in range(0, n_queries, BLOCK_M):
        reach = b * reach_b + row_start // BLOCK_M
        if (tl.load(reach_low + reach) < start + BLOCK_N) & (tl.load(reach_high + reach) > start):
            query = row_start + tl.arange(0, BLOCK_M)
            query64 = query.to(tl.int64)
            exists = query < n_queries
            first = tl.load(low + b * interval_b + query, mask=exists, other=0)
            last = tl.minimum(tl.load(high + b * interval_b + query, mask=exists, other=0), n_keys)
            given = tl.load(known + (b * n_heads + head) * n_queries + query, mask=exists, other=float("-inf"))
            some = tl.abs(given) < float("inf")
            queries = tl.load(
                q + b * q_b + head64 * q_h + query64[:, None] * q_t + column[None, :],
                mask=exists[:, None] & within[None, :],
                other=0.0,
            )
            if UPCAST:
                queries = queries.to(tl.float32)
            row_bias = None
            if bias is not None:
                row_bias = bias + b * bias_b + head64 * bias_h + query64 * bias_q
            row_keep = None
            if keep is not None:
                row_keep = keep + b * keep_b + head64 * keep_h + query64 * keep_q
            inside = (key[None, :] >= first[:, None]) & (key[None, :] < last[:, None]) & some[:, None]
            s = _scores(
                tl.dot(queries, keys, input_precision="ieee"),
                key,
                inside,
                row_bias,
                bias_k,
                row_keep,
                keep_k,
                score_scale,
                cap,
                SOFTCAP,
            )
            total += tl.sum(tl.exp2(s - tl.where(some, given * _LOG2E, 0.0)[:, None]), 0)
    tl.store(received + (b * n_heads + head) * n_keys + key, total, mask=key < n_keys)
