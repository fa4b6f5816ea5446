"""What a term is weighed against: the rest of the chunk, and all of it, said in other words.

A chunk without a term is speech too, and among ten thousand terms one always sounds like a piece of it: "olden" is
heard whole in "golden". So the frames before a term, those behind it, and the whole chunk are explained by words of the
language: the best sequence of them, each for the negative logarithm of its share in running text. What no word explains
is a fragment, paid for by the unit. A term then scores by how much better the chunk is explained with it than without.
This is keyword spotting against a vocabulary: Rose and Paul (1990), "A hidden Markov model based keyword recognition
system", https://doi.org/10.1109/ICASSP.1990.115555.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from earmark.retrieval import compiled_paths
from earmark.retrieval.compiled_paths import NEVER

# Nats, chosen on the demo's dev chunks, where 4 to 8 a fragment with 3.5 to 5 a unit reject alike.
FRAGMENT_COST = 8.0  # of a piece that is no known word; half of it where the piece is cut off by an end of the chunk
UNIT_COST = 3.5  # of each unit of such a piece


@dataclass(frozen=True)
class Surroundings:
    """The best explanations of parts of each chunk, in nats, at most 0."""

    before: torch.Tensor  # [B, T + 1], of the first t frames, a word ending with them
    after: torch.Tensor  # [B, T + 1], of what follows them
    whole: torch.Tensor  # [B]


def surroundings(
    emitted: torch.Tensor, lengths: torch.Tensor, units: torch.Tensor, unit_counts: torch.Tensor, costs: torch.Tensor
) -> Surroundings:
    """Explain emitted[B, T, U + 1] (`term_alignment.emissions`), of which lengths[B] are real, by words.

    The words are each chunk's own: units[B, N, L] of which unit_counts[B, N] count, and costs[B, N] in nats.
    """
    if compiled_paths.can_be_compiled(emitted):
        return _compiled(emitted, lengths, units, unit_counts, costs)
    return _in_pytorch(emitted, lengths, units.long(), unit_counts.long(), costs)


def _compiled(
    emitted: torch.Tensor, lengths: torch.Tensor, units: torch.Tensor, unit_counts: torch.Tensor, costs: torch.Tensor
) -> Surroundings:
    frames, after = compiled_paths.floats(emitted), torch.full((len(emitted), emitted.shape[1] + 1), NEVER)
    before, whole = torch.empty_like(after), after.new_empty(len(emitted))
    behind = np.empty(after.shape[1], np.float32)
    fees = np.float32(FRAGMENT_COST / 2), np.float32(UNIT_COST)
    for chunk, length in enumerate(lengths.tolist()):
        ids, counts = compiled_paths.ids(units[chunk]), compiled_paths.numbers(unit_counts[chunk])
        words = ids, counts, compiled_paths.floats(costs[chunk])
        whole[chunk] = compiled_paths.explain(frames[chunk], length, False, *words, *fees, before[chunk].numpy())
        compiled_paths.explain(frames[chunk], length, True, *words, *fees, behind)
        after[chunk, : length + 1] = torch.from_numpy(behind[length::-1].copy())
    return Surroundings(before, after, whole)


def _in_pytorch(
    emitted: torch.Tensor, lengths: torch.Tensor, units: torch.Tensor, unit_counts: torch.Tensor, costs: torch.Tensor
) -> Surroundings:
    frames = torch.arange(emitted.shape[1], device=emitted.device)
    mirror = (lengths[:, None] - 1 - frames).where(frames < lengths[:, None], frames)
    turned = emitted.gather(1, mirror[:, :, None].expand_as(emitted))
    places = torch.arange(units.shape[2], device=units.device)
    mirror_units = (unit_counts[..., None] - 1 - places).where(places < unit_counts[..., None], places)
    # From both ends at once: a search hears one chunk, and half as many steps are then half the time.
    borders, wholes = _explain(
        torch.cat([emitted, turned]),
        lengths.repeat(2),
        torch.cat([units, units.gather(2, mirror_units)]),
        unit_counts.repeat(2, 1),
        costs.repeat(2, 1),
    )
    before, behind = borders.chunk(2)
    left = lengths[:, None] - torch.arange(emitted.shape[1] + 1, device=emitted.device)
    after = behind.gather(1, left.clamp(min=0)).masked_fill(left < 0, NEVER)
    return Surroundings(before, after, wholes.chunk(2)[0])


def _explain(
    emitted: torch.Tensor, lengths: torch.Tensor, units: torch.Tensor, unit_counts: torch.Tensor, costs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """before[B, T + 1] and whole[B]: see `Surroundings`."""
    chunks = len(emitted)
    flat, ends = units.flatten(1), (unit_counts - 1)[..., None]
    reached = emitted.new_full(units.shape, NEVER)  # the best path that ends in each unit of each word, here
    entered = torch.empty_like(reached)
    fragment = emitted.new_full((chunks, emitted.shape[2] - 1), NEVER)  # in each unit of a fragment
    at_border = emitted.new_zeros(chunks)
    opening = emitted.new_zeros(chunks)  # nothing but blanks so far: a fragment here is cut off by the chunk's start
    in_fragment = emitted.new_full((chunks,), NEVER)
    borders, wholes = [at_border], [at_border]
    for frame in emitted.unbind(dim=1):
        here, blank = frame.gather(1, flat).view(units.shape), frame[:, 0]
        entered[..., 1:] = reached[..., :-1]
        entered[..., 0] = at_border[:, None] - costs
        entered += here
        reached += torch.maximum(here, blank[:, None, None])
        torch.maximum(reached, entered, out=reached)
        begin = torch.maximum(torch.maximum(in_fragment, at_border - FRAGMENT_COST / 2), opening) - UNIT_COST
        spoken = frame[:, 1:]
        fragment = torch.maximum(fragment + torch.maximum(spoken, blank[:, None]), begin[:, None] + spoken)
        in_fragment, opening = fragment.amax(dim=1), opening + blank
        word_ends = reached.gather(-1, ends).amax(dim=(1, 2))
        at_border = torch.maximum(torch.maximum(word_ends, in_fragment - FRAGMENT_COST / 2), at_border + blank)
        borders.append(at_border)
        wholes.append(torch.maximum(at_border, in_fragment))
    return torch.stack(borders, dim=1), torch.stack(wholes, dim=1).gather(1, lengths[:, None]).squeeze(1)
