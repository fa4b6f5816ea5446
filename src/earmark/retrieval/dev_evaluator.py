"""How well a model under training hears the dev split's terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers.base import BaseModel
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.util import batch_to_device

from earmark.errors import EarmarkError
from earmark.retrieval.chunk_frames import ChunkFrames
from earmark.retrieval.index import index_surfaces
from earmark.retrieval.model import TermRetriever, hear
from earmark.retrieval.processes import Processes
from earmark.retrieval.ranking import TermColumns, rank_of, term_scores
from earmark.retrieval.recipes import Plan
from earmark.retrieval.split_rows import SplitRow

RECALL = "dev_recall@10"
MRR = "dev_mrr"
LOSS = "dev_loss"


class DevLoss:
    """The training's own objective on dev chunks: of seen terms, or of none.

    Where a hundred chunks are all ranked right, this still tells a better epoch from a worse one. Nothing is varied or
    dropped out, and what is drawn (the surfaces to choose among) is the same in every epoch.
    """

    def __init__(self, plan: Plan, rows: Sequence[SplitRow], batch_size: int):
        self.batches = plan.batches.for_dev([row for row in rows if row.seen_term is not False])
        self.objective, self.batch_size = plan.loss, batch_size

    def __bool__(self) -> bool:
        return bool(self.batches.rows)

    def __call__(self, model: TermRetriever) -> float:
        """The sum of the loss's parts, mean over chunks. EarmarkError if it is not finite."""
        self.batches.start_epoch(0)
        total, chunks = 0.0, len(self.batches.rows)
        for start in range(0, chunks, self.batch_size):
            numbers = range(start, min(start + self.batch_size, chunks))
            batch = batch_to_device(self.batches([{"chunk": number} for number in numbers]), model.device)
            labels = batch.pop("label")
            parts = self.objective.parts(model, list(batch.values()), labels, Processes())
            total += len(numbers) * sum(part.item() for part in parts.values())
        return total / chunks


class DevEvaluator(BaseEvaluator):
    """Recall@10 and MRR over the dev chunks of seen terms (`SplitRow.seen_term`), ranked among all main terms.

    The others never take part: a choice made on terms that training has not heard would no longer be blind to them.
    Beside them `loss`, if it has chunks to be computed on.
    """

    def __init__(
        self,
        rows: Sequence[SplitRow],
        frames: ChunkFrames,
        surfaces: dict[str, str],
        candidates: int,
        batch_size: int,
        loss: DevLoss,
    ):
        super().__init__()
        self.rows = [row for row in rows if row.has_term and row.seen_term]
        self.frames, self.surfaces, self.candidates, self.batch_size = frames, surfaces, candidates, batch_size
        self.loss = loss
        self.primary_metric = RECALL

    def __call__(
        self,
        model: BaseModel,
        output_path: str | None = None,
        epoch: float | int = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        assert isinstance(model, TermRetriever)
        ranks = []
        with torch.inference_mode():
            index, _ = index_surfaces(model, self.surfaces)
            columns = TermColumns.of(index.main_terms)
            for start in range(0, len(self.rows), self.batch_size):
                batch = self.rows[start : start + self.batch_size]
                frames, lengths = self.frames.batch([row.chunk_id for row in batch])
                heard = hear(model, {"frames": frames, "frame_lengths": lengths})
                scores = term_scores(index.scores(heard, self.candidates), columns)
                if np.isnan(scores).any():
                    raise EarmarkError("training broke off: dev scores are not finite; lower the learning rate")
                for row, row_scores in zip(batch, scores, strict=True):
                    assert row.main_term is not None
                    ranks.append(rank_of(row_scores, columns, row.main_term, row.other_terms))
            loss = {LOSS: self.loss(model)} if self.loss else {}
        rank = np.array(ranks)
        return {RECALL: float((rank <= 10).mean()), MRR: float((1 / rank).mean()), **loss}
