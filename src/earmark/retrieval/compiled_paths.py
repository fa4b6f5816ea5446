"""Best paths through a chunk's frames, compiled: for a CPU, where no gradient is asked for.

A path goes frame by frame. In PyTorch a frame is a dozen operations on small tensors, and a query waits for their
launches rather than for their sums. These functions do the same float32 operations in the same order, so the results
are those of `term_alignment`, `surroundings` and `unit_ngrams` to the last bit, but for terms of more units than the
chunk has frames, whom nothing fits. They let go of the interpreter's lock.
"""

from __future__ import annotations

import numpy as np
import torch

from earmark.retrieval.machine_code import compiled

NEVER = -1e4  # what no path scores; a frame beyond a chunk's end emits it

_NEVER = np.float32(NEVER)


def can_be_compiled(emitted: torch.Tensor) -> bool:
    """Whether these functions may take the place of differentiable ones."""
    gradients = emitted.requires_grad and torch.is_grad_enabled()
    return emitted.device.type == "cpu" and emitted.dtype == torch.float32 and not gradients


def ids(units: torch.Tensor) -> np.ndarray:
    """Units as the functions below take them: unsigned, for an index that may be negative is looked at twice."""
    return np.ascontiguousarray(units.numpy(), dtype=np.uint32)


def numbers(counts: torch.Tensor) -> np.ndarray:
    """Counts of units as the functions below take them."""
    return np.ascontiguousarray(counts.numpy(), dtype=np.int64)


def floats(values: torch.Tensor) -> np.ndarray:
    """Emissions, costs and scores as the functions below take them."""
    return np.ascontiguousarray(values.detach().numpy(), dtype=np.float32)


@compiled("void(f4[:,::1], u4[:,::1], i8[::1], f4[::1], f4[::1], f4, f4[::1])")
def align(
    emitted: np.ndarray,
    units: np.ndarray,
    counts: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    bonus: float,
    scores: np.ndarray,
) -> None:
    """Fill scores[N] of terms units[N, L], of which counts[N] count, in one chunk's emitted[T, U + 1].

    A path begins behind before[t] and ends before after[t], t from 0 to T. All are float32, scores NaN if a frame is.
    """
    if np.isnan(emitted).any():
        scores[:] = np.nan
        return
    here = np.empty(units.shape[1], np.float32)
    reached = np.empty(units.shape[1] + 1, np.float32)  # the best path that ends in each unit, behind one that begins
    reaching = np.empty_like(reached)
    for term in range(len(units)):
        reached[:] = _NEVER
        best, count = _NEVER, counts[term]
        for number in range(len(emitted)):
            frame = emitted[number]
            blank = frame[0]
            if blank <= _NEVER:
                break
            # Fetched first, and no array read that is written: the loop behind it then takes eight units at a time.
            for unit in range(count):
                here[unit] = frame[units[term, unit]]
            reached[0] = before[number]
            for unit in range(count):
                stay, move = reached[unit + 1] + max(here[unit], blank), reached[unit] + here[unit] + bonus
                reaching[unit + 1] = max(stay, move)
            reached, reaching = reaching, reached
            best = max(best, reached[count] + after[number + 1])
        scores[term] = best


@compiled("f4(f4[:,::1], i8, b1, u4[:,::1], i8[::1], f4[::1], f4, f4, f4[::1])")
def explain(
    emitted: np.ndarray,
    length: int,
    backward: bool,
    units: np.ndarray,
    counts: np.ndarray,
    costs: np.ndarray,
    cut_cost: float,
    unit_cost: float,
    borders: np.ndarray,
) -> np.float32:
    """Fill borders[T + 1] with the best explanations of the first t frames, and return that of all `length` of them.

    `backward`: of the last t frames, from the end. Words are units[N, L], of which counts[N] count, for costs[N]. A
    fragment costs `cut_cost` for each of its ends that is not the chunk's, and `unit_cost` a unit. All is float32.
    """
    borders[:] = _NEVER
    if np.isnan(emitted).any():
        borders[:] = np.nan
        return np.float32(np.nan)
    words, spoken = units.shape[0], emitted.shape[1] - 1
    reached = np.full(units.shape, _NEVER, np.float32)
    fragment = np.full(spoken, _NEVER, np.float32)
    at_border = opening = whole = np.float32(0)
    in_fragment = _NEVER
    borders[0] = at_border
    for number in range(length):
        frame = emitted[length - 1 - number] if backward else emitted[number]
        blank = frame[0]
        word_ends = np.float32(-np.inf)
        for word in range(words):
            count = counts[word]
            previous = at_border - costs[word]
            for place in range(count):
                here = frame[units[word, count - 1 - place if backward else place]]
                old = reached[word, place]
                stay, move = old + max(here, blank), previous + here
                reached[word, place] = max(stay, move)
                previous = old
            word_ends = max(word_ends, reached[word, count - 1])
        begin = max(max(in_fragment, at_border - cut_cost), opening) - unit_cost
        in_fragment = np.float32(-np.inf)
        for unit in range(spoken):
            here = frame[unit + 1]
            fragment[unit] = max(fragment[unit] + max(here, blank), begin + here)
            in_fragment = max(in_fragment, fragment[unit])
        opening += blank
        at_border = max(max(word_ends, in_fragment - cut_cost), at_border + blank)
        borders[number + 1] = at_border
        whole = max(at_border, in_fragment)
    return whole


@compiled("void(f4[:,::1], f4[::1], f4[:,::1])")
def best_moments(emitted: np.ndarray, one: np.ndarray, two: np.ndarray) -> None:
    """Fill one[U] and two[U, U] with the best path of each unit and pair anywhere in one chunk's emitted[T, U + 1]."""
    one[:] = _NEVER
    two[:] = _NEVER
    if np.isnan(emitted).any():
        one[:] = np.nan
        two[:] = np.nan
        return
    last, last_two = one.copy(), two.copy()  # of the paths that end here
    rest = np.empty_like(one)
    for number in range(len(emitted)):
        blank, here = emitted[number, 0], emitted[number, 1:]
        if blank <= _NEVER:
            break
        for unit in range(len(one)):
            rest[unit] = max(here[unit], blank)
        for first in range(len(one)):
            begun, path, best = last[first], last_two[first], two[first]
            for second in range(len(one)):
                path[second] = max(path[second] + rest[second], begun + here[second])
                best[second] = max(best[second], path[second])
        for unit in range(len(one)):
            last[unit] = max(last[unit] + rest[unit], here[unit])
            one[unit] = max(one[unit], last[unit])
