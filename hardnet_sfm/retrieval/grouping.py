"""Groups the signatures of several photos within words. The functions are compiled by numba."""

# numba infers the types when a function is first called.
# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

import numpy as np

from hardnet_sfm.retrieval.kernels import compiled, popcount


@compiled
def aggregate(words, signatures, sources, reach, least):
    """Groups signatures within words. A signature joins the first group whose first member is within reach.

    Args:
        words: (N,) int64, not decreasing.
        signatures: (N,) uint64.
        sources: (N,) int64, not decreasing within a word; 0 is the query.
        reach: largest Hamming distance.
        least: smallest number of sources of a group without the query.

    Returns:
        (G,) words and (G,) signatures with the majority of each bit. The first member decides ties.
    """
    number = len(words)
    group, first = np.arange(number), 0
    for row in range(number):
        if words[row] != words[first]:
            first = row
        for other in range(first, row):
            if group[other] == other and popcount(signatures[other] ^ signatures[row]) <= reach:
                group[row] = other
                break
    out_words, out = np.empty(number, np.int64), np.empty(number, np.uint64)
    ones = np.empty(64, np.int64)
    count = 0
    for row in range(number):
        if group[row] != row:
            continue
        members, distinct, last, end = 0, 0, -1, row
        while end < number and words[end] == words[row]:
            if group[end] == row:
                members += 1
                if sources[end] != last:
                    distinct, last = distinct + 1, sources[end]
            end += 1
        if sources[row] != 0 and distinct < least:
            continue
        out_words[count], out[count] = words[row], signatures[row]
        if members > 1:
            out[count] = _majority(signatures[row:end], group[row:end] == row, members, ones)
        count += 1
    return out_words[:count].copy(), out[:count].copy()


@compiled
def _majority(signatures, chosen, members, ones):
    """Returns the majority of each bit of the chosen signatures. The first one decides ties."""
    ones[:] = 0
    for row in range(len(signatures)):
        if chosen[row]:
            for bit in range(64):
                ones[bit] += np.int64((signatures[row] >> np.uint64(bit)) & np.uint64(1))
    merged = np.uint64(0)
    for bit in range(64):
        own = (signatures[0] >> np.uint64(bit)) & np.uint64(1)
        if 2 * ones[bit] > members or (2 * ones[bit] == members and own):
            merged |= np.uint64(1) << np.uint64(bit)
    return merged
