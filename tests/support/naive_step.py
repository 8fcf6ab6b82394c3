"""The state of a step again, in plain Python: a row and a token at a time."""

import math

import numpy as np

IDLE, RUNNING, STOP, LENGTH, FAILED = 4, 0, 1, 2, 3


def bit(words, row, token):
    return (int(words[row, token // 32]) & 0xFFFFFFFF) >> token % 32 & 1


def process_logits(
    logits, tally, bias, allowed, stop_bits, generated, min_tokens, repetition, frequency,
    presence, active,
):  # fmt: skip
    out = logits.double().numpy().copy()
    for row, token in np.ndindex(*out.shape):
        if not active[row]:
            continue
        x = out[row, token] + float(bias[row, token])
        seen, n = int(tally[row, token]), int(tally[row, token]) >> 1
        if seen:
            x = x * float(repetition[row]) if x < 0 else x / float(repetition[row])
        x -= float(frequency[row]) * n + float(presence[row]) * (n > 0)
        early = int(generated[row]) < int(min_tokens[row])
        if not bit(allowed, row, token) or (early and bit(stop_bits, row, token)):
            x = -math.inf
        out[row, token] = x
    return (out,)


def advance_step(
    sampled, ids, positions, seqlens_k, generated, max_tokens, stop_bits, slots, block_tables,
    results, *, page_size, tally=None, feature_rows=None,
):  # fmt: skip
    state = [ids, positions, seqlens_k, generated, slots, results, tally, feature_rows]
    state = [None if t is None else t.clone() for t in state]
    ids, positions, seqlens_k, generated, slots, results, tally, feature_rows = state
    vocab = 32 * stop_bits.shape[1] if tally is None else tally.shape[1]
    for b, token in enumerate(sampled.tolist()):
        if seqlens_k[b] == 0:
            results[0, b], results[1, b] = -1, IDLE
            continue
        code = RUNNING
        if not 0 <= token < vocab:
            code = FAILED
        else:
            generated[b] += 1
            if tally is not None:
                tally[b, token] += 2
            if bit(stop_bits, b, token):
                code = STOP
            elif generated[b] >= max_tokens[b]:
                code = LENGTH
        results[0, b], results[1, b] = token, code
        if feature_rows is not None:
            feature_rows[b] = -1
        if code == RUNNING:
            ids[b], positions[b], seqlens_k[b] = token, positions[b] + 1, seqlens_k[b] + 1
        else:
            positions[b], seqlens_k[b] = 0, 0
        for kind, table in enumerate(block_tables):
            column, offset = divmod(int(positions[b]), page_size)
            page = int(table[b, column]) if column < table.shape[1] and code == RUNNING else -1
            slots[kind, b] = -1 if page < 0 else page * page_size + offset
    return tuple(t for t in state if t is not None)
