"""Making cached frames vary from epoch to epoch, so that a small set of voices is not learnt by heart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class FrameAugmentation:
    """Cuts the ends of a chunk, blanks a few spans of time and adds noise; frames beyond a chunk's end stay zero.

    After Park et al. (2019), "SpecAugment", https://arxiv.org/abs/1904.08779, with cached encoder states in the place
    of the spectrogram.
    """

    crop_frames: int  # at most so many frames are cut off either end
    mask_spans: int
    mask_frames: int  # longest span
    noise: float  # standard deviation, relative to that of the batch's frames

    def __call__(
        self, frames: torch.Tensor, lengths: torch.Tensor, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """frames[B, T, dim] and lengths[B] -> the same, varied; the input is not changed."""
        varied = torch.zeros_like(frames)
        new_lengths = lengths.clone()
        for index, length in enumerate(lengths.tolist()):
            most = min(self.crop_frames, length // 4)
            start, end = random.integers(0, most + 1), length - random.integers(0, most + 1)
            clip = frames[index, start:end].clone()
            for _ in range(self.mask_spans):
                span = int(random.integers(0, self.mask_frames + 1))
                first = int(random.integers(0, max(1, len(clip) - span)))
                clip[first : first + span] = 0
            varied[index, : len(clip)] = clip
            new_lengths[index] = len(clip)
        if self.noise:
            scale = self.noise * float(frames.std())
            noise = torch.from_numpy(random.standard_normal(varied.shape, dtype=np.float32))
            varied += scale * noise * (torch.arange(varied.shape[1]) < new_lengths[:, None])[:, :, None]
        return varied, new_lengths


UNCHANGED = FrameAugmentation(crop_frames=0, mask_spans=0, mask_frames=0, noise=0.0)
