"""How well a chunk holds a term: the best path of the term's units through the chunk's frames.

Each frame says how likely each unit is. A term is laid over some stretch of the frames, its units in order; the frames
of the stretch are paid for by how far the unit on the path falls short of the frame's likeliest one, and every unit of
the term earns a bonus. So a term that was spoken scores near its length times the bonus, whatever stands around it, and
of two terms that fit, one inside the other ("stock exchange" in "new york stock exchange"), the longer wins. Keyword
spotting against a filler model: Rohlicek et al. (1989), "Continuous hidden Markov modeling for speaker-independent word
spotting", https://doi.org/10.1109/ICASSP.1989.266505, with the frame's best unit as the filler; the late interaction of
Khattab and Zaharia (2020), "ColBERT", https://arxiv.org/abs/2004.12832, with order kept.
"""

from __future__ import annotations

import numpy as np
import torch

from earmark.retrieval import compiled_paths
from earmark.retrieval.compiled_paths import NEVER
from earmark.retrieval.surroundings import Surroundings

UNIT_BONUS = 2.5
FLOOR = 0.003  # probability below which a unit is as good as absent: bounds what one bad frame can cost


def emissions(log_probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """log_probs[B, T, U] and lengths[B] -> how far each unit falls short of its frame's likeliest, at most 0.

    Frames beyond a chunk's end are closed to every path.
    """
    raised = (log_probs.exp() + FLOOR).log()
    short = raised - raised.amax(dim=-1, keepdim=True)
    real = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    return short.masked_fill(~real[:, :, None], NEVER)


def alignment_scores(
    emitted: torch.Tensor,
    units: torch.Tensor,
    unit_counts: torch.Tensor,
    around: Surroundings | None = None,
) -> torch.Tensor:
    """scores[B, N] of terms in chunks, from emitted[B, T, U] (`emissions`; unit 0 is the blank).

    units[N, L] are the same terms for all chunks, units[B, N, L] each chunk's own; unit_counts[N] or [B, N] say how
    many of a row count. Between and within its units a path may rest on the blank or stay on the unit. Differentiable:
    gradients follow the best path. With `around`, a score is by how much the chunk is explained better with the term
    than without, and no bonus is earned.
    """
    units = units.expand(len(emitted), *units.shape[-2:])
    counts = unit_counts.expand(len(emitted), units.shape[1])
    if compiled_paths.can_be_compiled(emitted):
        return _compiled_scores(emitted, units, counts, around)
    return _scores_in_pytorch(emitted, units.long(), counts.long(), around)


def _compiled_scores(
    emitted: torch.Tensor, units: torch.Tensor, counts: torch.Tensor, around: Surroundings | None
) -> torch.Tensor:
    frames, scores = compiled_paths.floats(emitted), np.empty(counts.shape, np.float32)
    free = np.zeros((len(frames), frames.shape[1] + 1), np.float32)
    before, after = (free, free) if around is None else map(compiled_paths.floats, (around.before, around.after))
    bonus = np.float32(UNIT_BONUS if around is None else 0.0)
    for chunk in range(len(frames)):
        terms = compiled_paths.ids(units[chunk]), compiled_paths.numbers(counts[chunk])
        compiled_paths.align(frames[chunk], *terms, before[chunk], after[chunk], bonus, scores[chunk])
    found = torch.from_numpy(scores)
    return found if around is None else found - around.whole[:, None]


def _scores_in_pytorch(
    emitted: torch.Tensor, units: torch.Tensor, counts: torch.Tensor, around: Surroundings | None
) -> torch.Tensor:
    bonus = UNIT_BONUS if around is None else 0.0
    flat = units.flatten(1)
    reached = emitted.new_full(units.shape, NEVER)  # the best path that ends in each unit, here
    best = reached
    entry = emitted.new_zeros(*units.shape[:2], 1)  # a term may begin anywhere
    for number, frame in enumerate(emitted.unbind(dim=1)):
        here = frame.gather(1, flat).view(units.shape)
        blank = frame[:, 0, None, None]
        if around is not None:
            entry = around.before[:, number, None, None].expand_as(entry)
        before = torch.cat([entry, reached[..., :-1]], dim=-1)
        reached = torch.maximum(reached + torch.maximum(here, blank), before + here + bonus)
        best = torch.maximum(best, reached if around is None else reached + around.after[:, number + 1, None, None])
    scores = best.gather(-1, (counts - 1)[..., None]).squeeze(-1)
    return scores if around is None else scores - around.whole[:, None]


def locate(
    emitted: torch.Tensor, units: torch.Tensor, unit_counts: torch.Tensor, around: Surroundings | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each term's best path lies: first[N] and last[N] frame (inclusive), in one chunk's emitted[T, U].

    `around`: of that chunk, with a batch dimension of one.
    """
    bonus = UNIT_BONUS if around is None else 0.0
    rows, longest = units.shape
    last_unit = (unit_counts - 1)[:, None]
    reached = emitted.new_full((rows, longest), NEVER)
    began = torch.zeros(rows, longest, dtype=torch.long)
    entry = emitted.new_zeros(rows, 1)
    best = emitted.new_full((rows,), -torch.inf)
    entered = torch.zeros(rows, dtype=torch.long)
    first, last = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
    for number, frame in enumerate(emitted):
        here = frame[units]
        if around is not None:
            entry = around.before[:, number, None].expand(rows, 1)
        stay = reached + torch.maximum(here, frame[0])
        move = torch.cat([entry, reached[:, :-1]], dim=1) + here + bonus
        moved_from = torch.cat([torch.full((rows, 1), number), began[:, :-1]], dim=1)
        began = torch.where(move > stay, moved_from, began)
        # A path ends where it enters the last unit: the frames on which it stays would make a term look longer.
        entered = torch.where((move > stay).gather(1, last_unit).squeeze(1), number, entered)
        reached = torch.maximum(stay, move)
        score = reached.gather(1, last_unit).squeeze(1) + (0.0 if around is None else around.after[0, number + 1])
        better = score > best
        best = torch.where(better, score, best)
        first = torch.where(better, began.gather(1, last_unit).squeeze(1), first)
        last = torch.where(better, entered, last)
    return first, last
