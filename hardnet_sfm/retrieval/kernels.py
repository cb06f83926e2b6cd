"""Loops over inverted lists, compiled by numba. They release Python's lock, so threads can run them in parallel.

Sums over images are kept as integers in units of 2^-30, so that they do not depend on the order of adding. Scores are
the same to the last bit for any number of threads and any division of the photos into segments.

Lists are those of one segment: entries are sorted by word, and within a word by image. `offsets` (W + 1,) int64 gives
the start of each word's list. `images` (E,) uint16 gives the image of each entry, and `signatures` (E,) uint64 its
binary signature.
"""

# numba infers the types when a function is first called.
# mypy: disable-error-code="no-untyped-def, assignment, call-arg"

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

UNIT = 2.0**30
_BLOCK = 1024
_RUN = 32


@intrinsic
def popcount(typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Counts the bits set in a uint64, by one instruction."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), build


def compiled(function: Any) -> Any:
    """Compiles a function on first use, and keeps the result on disk for the next process."""
    return numba.njit(nogil=True, cache=True, boundscheck=False)(function)


@compiled
def document_frequencies(offsets, images, alive, frequencies):
    """Adds to (W,) int64 the number of images with each word, without removed images."""
    for word in range(len(offsets) - 1):
        last, count = -1, 0
        for entry in range(offsets[word], offsets[word + 1]):
            image = np.int64(images[entry])
            if image != last:
                count += alive[image]
                last = image
        frequencies[word] += count


@compiled
def squared_norms(offsets, images, idf, of_counts, of_words, words):
    """Adds to (65536,) float64 each the sums over an image's words of (tf idf)^2, of idf^2, and of 1."""
    for word in range(len(offsets) - 1):
        squared = idf[word] * idf[word]
        entry, end = offsets[word], offsets[word + 1]
        while entry < end:
            image, start = images[entry], entry
            while entry < end and images[entry] == image:
                entry += 1
            of_counts[image] += squared * (entry - start) * (entry - start)
            of_words[image] += squared
            words[image] += 1


@compiled
def score_words(words, weights, offsets, images, scores):
    """Bag of words: adds a weight to an image for each of its entries in the lists of (Q,) words."""
    for row in range(len(words)):
        amount = np.int64(weights[row] * UNIT)
        for entry in range(offsets[words[row]], offsets[words[row] + 1]):
            scores[images[entry]] += amount


@compiled
def _match_list(
    signature, signatures, images, weights, factor, reach, strict, alive, near, found_images, found, found_strict
):
    """Finds the matches of one signature in one list, one for each image; returns their number.

    The matches are written into the last three arrays.
    """
    count, image, total, raised, nearest = 0, 0, 0.0, 0.0, 64
    for block in range(0, len(signatures), _BLOCK):
        size, hits = min(_BLOCK, len(signatures) - block), 0
        # There is no branch: one that is taken randomly for every thirtieth entry costs more than the rest of the loop.
        for at in range(size):
            near[hits] = at
            hits += np.int64(popcount(signatures[block + at] ^ signature)) <= reach
        for hit in range(hits):
            entry = block + near[hit]
            distance = np.int64(popcount(signatures[entry] ^ signature))
            weight = weights[distance] * factor
            other = np.int64(images[entry])
            if other != image:
                if total > 0 and alive[image]:
                    found_images[count], found[count] = image, raised / np.sqrt(total)
                    found_strict[count] = nearest <= strict
                    count += 1
                image, total, raised, nearest = other, 0.0, 0.0, 64
            total += weight
            raised += weight * np.sqrt(weight)
            nearest = min(nearest, distance)
    if total > 0 and alive[image]:
        found_images[count], found[count] = image, raised / np.sqrt(total)
        found_strict[count] = nearest <= strict
        count += 1
    return count


@compiled
def embedded_matches(
    first, last, starts, words, signatures, weights, strict, idf, offsets, list_signatures, list_images, alive
):
    """Hamming embedding: finds matches of query features, and discounts bursts within an image.

    A match of distance h weighs w = weights[h] idf^2. The matches of one feature in one image together weigh
    sum(w sqrt(w / sum(w))) (Jegou, Douze, Schmid, CVPR 2009, section 4.2).

    Lower bound: reading 8 bytes of signature and 2 of image for each entry of the lists.

    Args:
        first, last: features `first` to `last - 1` are searched.
        starts: (F + 1,) start of each feature's rows in `words` and `signatures`.
        words, signatures: (R,) words assigned to features, and the features' signatures in these words.
        weights: (65,) weights by distance; zero above some distance.
        strict: largest distance of a strict match.
        idf: (W,) idf of each word.
        alive: (65536,) 1 for images that are searched.

    Returns:
        images (M,) uint16; weights (M,) float32; whether each is a strict match in its feature's first word (M,) uint8;
        and (last - first + 1,) the start of each feature's matches.
    """
    reach = 64
    while reach > 0 and weights[reach] == 0:
        reach -= 1
    # There is room for a match of every entry, as memory that is not written to costs nothing. An array that grows in
    # the loop would keep the compiler from optimising it: 15 ns an entry instead of 1.
    room = 0
    for row in range(starts[first], starts[last]):
        room += offsets[words[row] + 1] - offsets[words[row]]
    found_images, found = np.empty(room, np.uint16), np.empty(room, np.float32)
    found_strict = np.empty(room, np.uint8)
    bounds = np.zeros(last - first + 1, np.int64)
    near = np.empty(_BLOCK + 1, np.int64)
    count = 0
    for feature in range(first, last):
        for row in range(starts[feature], starts[feature + 1]):
            word = words[row]
            part = slice(offsets[word], offsets[word + 1])
            count += _match_list(
                signatures[row],
                list_signatures[part],
                list_images[part],
                weights,
                idf[word] * idf[word],
                reach,
                strict if row == starts[feature] else -1,
                alive,
                near,
                found_images[count:],
                found[count:],
                found_strict[count:],
            )
        bounds[feature - first + 1] = count
    return found_images[:count].copy(), found[:count].copy(), found_strict[:count].copy(), bounds


@compiled
def sum_matches(bounds, found, totals):
    """Sums the weights of each feature's matches, (F,) int64."""
    for feature in range(len(bounds) - 1):
        total = np.int64(0)
        for match in range(bounds[feature], bounds[feature + 1]):
            total += np.int64(found[match] * UNIT)
        totals[feature] += total


@compiled
def score_matches(bounds, found_images, found, found_strict, totals, scores, counts):
    """Adds matches to their images, and discounts bursts over all images: w sqrt(w / sum(w)) (CVPR 2009, 4.3).

    It adds the number of strict matches to `counts`.
    """
    for feature in range(len(bounds) - 1):
        if totals[feature] > 0:
            total = totals[feature] / UNIT
            for match in range(bounds[feature], bounds[feature + 1]):
                weight = np.float64(found[match])
                scores[found_images[match]] += np.int64(weight * np.sqrt(weight / total) * UNIT)
                counts[found_images[match]] += found_strict[match]


@compiled
def _length(signatures, begin, end):
    """Returns the L2 norm of the sum of signatures, taken as vectors of +1 and -1."""
    number = end - begin
    if number == 1:
        return 8.0
    if number <= 32:
        total = 64 * number
        for one in range(begin, end):
            for other in range(one + 1, end):
                total += 2 * (64 - 2 * np.int64(popcount(signatures[one] ^ signatures[other])))
        return np.sqrt(np.float64(total))
    total = 0
    for bit in range(64):
        ones = 0
        for one in range(begin, end):
            ones += np.int64((signatures[one] >> np.uint64(bit)) & np.uint64(1))
        total += (2 * ones - number) * (2 * ones - number)
    return np.sqrt(np.float64(total))


@compiled
def score_aggregated(
    starts, words, signatures, least, power, of_distance, factors, offsets, list_signatures, list_images, scores
):
    """ASMK over signatures, taken as vectors of +1 and -1.

    It adds factor * similarity^power for each word that the query and an image have in common.

    Args:
        starts: (Q + 1,) start of the signatures of each of the query's words.
        words: (Q,) words of the query.
        signatures: (R,) signatures of the query.
        least: similarities below this count as 0.
        power: alpha, the exponent of similarities.
        of_distance: (65,) selected similarity^power by distance, if the query and the image have one signature each in
            the word.
        factors: (W,) factor of each word.
    """
    for row in range(len(words)):
        word = words[row]
        mine = _length(signatures, starts[row], starts[row + 1])
        number = starts[row + 1] - starts[row]
        entry, end = offsets[word], offsets[word + 1]
        while entry < end:
            image, begin, product = list_images[entry], entry, 0
            while entry < end and list_images[entry] == image:
                for one in range(starts[row], starts[row + 1]):
                    product -= 2 * np.int64(popcount(signatures[one] ^ list_signatures[entry]))
                entry += 1
            product += 64 * number * (entry - begin)
            if number == 1 and entry - begin == 1:
                scores[image] += np.int64(factors[word] * of_distance[(64 - product) // 2] * UNIT)
                continue
            if product > 0:
                lengths = mine * _length(list_signatures, begin, entry)
                if lengths > 0 and product >= least * lengths:
                    similarity = product / lengths
                    scores[image] += np.int64(factors[word] * similarity**power * UNIT)


@compiled
def correspondences(starts, words, signatures, reach, offsets, list_signatures, list_images, wanted):
    """Finds all pairs of a query feature and an entry of wanted images, with signatures at most `reach` bits apart.

    Args:
        starts, words, signatures: see `embedded_matches`.
        wanted: (65536,) uint8, 1 for wanted images.

    Returns:
        (M, 3) int64: feature, entry, Hamming distance.
    """
    count = 0
    for feature in range(len(starts) - 1):
        for row in range(starts[feature], starts[feature + 1]):
            for entry in range(offsets[words[row]], offsets[words[row] + 1]):
                count += wanted[list_images[entry]]
    found = np.empty((count, 3), np.int64)
    count = 0
    for feature in range(len(starts) - 1):
        for row in range(starts[feature], starts[feature + 1]):
            for entry in range(offsets[words[row]], offsets[words[row] + 1]):
                if wanted[list_images[entry]]:
                    distance = np.int64(popcount(list_signatures[entry] ^ signatures[row]))
                    if distance <= reach:
                        found[count, 0], found[count, 1], found[count, 2] = feature, entry, distance
                        count += 1
    return found[:count].copy()


@compiled
def entries_of(first, last, offsets, images, following):
    """Finds entries of wanted images in the lists of the words `first` to `last - 1`.

    It returns their numbers and words, (M,) each. Lower bound: 2 bytes an entry. Images rise within a list. So the last
    image of a run of entries tells whether the run can contain a wanted one. Few runs can, and the others are skipped.

    Args:
        following: (65536,) int64, the smallest wanted image that is not below each image; 65536 if there is none.
    """
    # Memory that is not written to costs nothing.
    room = offsets[last] - offsets[first]
    found, found_words = np.empty(room, np.int64), np.empty(room, np.int32)
    at = 0
    for word in range(first, last):
        begin, end = offsets[word], offsets[word + 1]
        next_wanted = following[0]
        for start in range(begin, end, _RUN):
            stop = min(start + _RUN, end)
            if images[stop - 1] >= next_wanted:
                for entry in range(start, stop):
                    found[at], found_words[at] = entry, word
                    at += following[images[entry]] == images[entry]
                next_wanted = following[images[stop - 1]]
    return found[:at].copy(), found_words[:at].copy()


@compiled
def merge_lists(offsets, images, signatures, geometry, numbers, new_images, new_signatures, new_geometry, cursors):
    """Copies the lists of one segment into those of a larger one, without removed images.

    Args:
        offsets, images, signatures, geometry: lists of the segment.
        numbers: (65536,) int64, the images' numbers in the larger segment; -1 for removed images.
        new_images, new_signatures, new_geometry: lists of the larger segment.
        cursors: (W,) int64, the next free place of each list in the larger segment; this function advances them.
    """
    for word in range(len(offsets) - 1):
        at = cursors[word]
        for entry in range(offsets[word], offsets[word + 1]):
            number = numbers[images[entry]]
            if number >= 0:
                new_images[at] = number
                new_signatures[at] = signatures[entry]
                new_geometry[at] = geometry[entry]
                at += 1
        cursors[word] = at


@compiled
def living_counts(offsets, images, numbers, counts):
    """Adds to (W,) int64 the number of entries of each word, without those of removed images."""
    for word in range(len(offsets) - 1):
        for entry in range(offsets[word], offsets[word + 1]):
            counts[word] += numbers[images[entry]] >= 0
