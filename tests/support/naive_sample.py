"""The sampler again, in plain Python: scalar Philox, sorted lists, float64."""

import math

import numpy as np


def philox(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def gumbel(seed, counter, token):
    words = philox(
        (token // 4, 0, counter % 2**32, counter >> 32), (seed % 2**32, seed >> 32 & 0xFFFFFFFF)
    )
    u = min((words[token % 4] + 0.5) / 2**32, 1 - 2**-24)
    return -math.log(-math.log1p(-u))


def sample_row(row, temperature, top_k, top_p, min_p, seed, counter):
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    if temperature <= 0:
        return order[0]
    scaled = {i: (row[i] - row[order[0]]) / temperature for i in order}
    kept = order[: top_k or None]
    total, before, nucleus = sum(math.exp(scaled[i]) for i in kept), 0.0, []
    for i in kept:
        if top_p >= 1 or before <= top_p:
            nucleus.append(i)
        before += math.exp(scaled[i]) / total
    kept = [i for i in nucleus if math.exp(scaled[i]) >= min_p]
    return max(kept, key=lambda i: scaled[i] + gumbel(seed, counter, i))


def sample(logits, temperature, top_k, top_p, min_p, seeds, counters, top_logprobs=0):
    ids, logprobs, top_ids, top = [], [], [], []
    parameters = zip(
        *(t.tolist() for t in (temperature, top_k, top_p, min_p, seeds, counters)), strict=True
    )
    for row, options in zip(logits.double().tolist(), parameters, strict=True):
        temperature, _, top_p, min_p, *_ = options
        if any(map(math.isnan, (*row, temperature, top_p, min_p))) or max(row) == -math.inf:
            ids.append(-1)
            logprobs.append(math.nan)
            top_ids.append([-1] * top_logprobs)
            top.append([math.nan] * top_logprobs)
            continue
        ids.append(sample_row(row, *options))
        largest = max(row)
        above = [0.0 if v == largest else v - largest for v in row]
        lse = math.log(sum(math.exp(v) for v in above))
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:top_logprobs]
        logprobs.append(above[ids[-1]] - lse)
        top_ids.append(order)
        top.append([above[i] - lse for i in order])
    shape = (len(ids), top_logprobs)
    return (
        np.array(ids, dtype=np.int64),
        np.array(logprobs),
        *(np.array(t).reshape(shape) for t in (top_ids, top)),
    )
