"""The training objective and the batches it is fed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from earmark.artifacts import FEATURES, write_table
from earmark.errors import EarmarkError, InputError
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.chunk_frames import ChunkFrames, cached_frames
from earmark.retrieval.retriever_loss import RetrieverLoss
from earmark.retrieval.split_rows import SplitRow
from earmark.retrieval.term_loss import IGNORED, NOT_SPOKEN, SPOKEN, TermLoss
from earmark.retrieval.text_tower import SpellingTower, character_ngrams
from earmark.retrieval.training_batches import TrainingBatches, spoken_phrases
from earmark.retrieval.word_loss import WordLoss

NO_CHANGE = FrameAugmentation(crop_frames=0, mask_spans=0, mask_frames=0, noise=0.0)


def unit(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def row(chunk: str, term: str | None, text: str, others: tuple[str, ...] = (), main: str | None = None) -> SplitRow:
    return SplitRow(chunk, "speaker", term, main or term, others, None if term is None else True, text, 1.0)


@pytest.fixture
def frames(tmp_path) -> ChunkFrames:
    random = np.random.default_rng(0)
    rows = []
    for name, length in (("a", 3), ("b", 8), ("c", 5), ("d", 6)):
        data = random.standard_normal((length, 4)).astype("<f2")
        rows.append({"chunk_id": name, "n_frames": length, "frames": data.tobytes()})
    write_table(tmp_path / "0.parquet", pa.Table.from_pylist(rows, schema=FEATURES))
    return ChunkFrames([tmp_path / "0.parquet"], "abcd", tmp_path / "cache")


def batches(frames: ChunkFrames, rows: list[SplitRow], surfaces: dict[str, str], **limits: int) -> TrainingBatches:
    tower = SpellingTower(64, 2, 3, 8, 8, 0.0)
    limits = {"max_surfaces": 10, "max_phrases": 50, "longest_phrase": 2, **limits}
    return TrainingBatches(rows, frames, surfaces, tower, NO_CHANGE, seed=0, **limits)


def test_term_loss_by_hand_for_one_chunk_and_two_surfaces():
    loss = TermLoss(temperature=1.0)
    value = loss(unit((1, 0)), unit((1, 0), (0, 1)), torch.tensor([[SPOKEN, NOT_SPOKEN]]))
    by_chunk = -math.log(math.e / (math.e + 1 + math.exp(loss.no_term_score.item())))
    assert value.item() == pytest.approx(by_chunk / 2)  # the surface has no other chunk to choose, which costs nothing


def test_an_ignored_surface_has_no_effect_wherever_it_lies():
    loss = TermLoss(temperature=0.1)
    targets = torch.tensor([[SPOKEN, NOT_SPOKEN, IGNORED]])
    near = loss(unit((1, 0)), unit((1, 0), (0, 1), (1, 0.1)), targets)
    far = loss(unit((1, 0)), unit((1, 0), (0, 1), (-1, 0)), targets)
    assert near.item() == pytest.approx(far.item())


def test_a_no_term_chunk_is_pushed_away_from_every_surface():
    audio = unit((1, 0.2)).requires_grad_()
    surfaces = unit((1, 0), (1, 0.4))
    TermLoss(temperature=0.1)(audio, surfaces, torch.full((1, 2), NOT_SPOKEN)).backward()
    assert audio.grad is not None
    assert (surfaces @ -audio.grad[0] < 0).all()  # a step against the gradient lowers both scores


def test_words_of_the_same_chunk_do_not_compete():
    loss = WordLoss(temperature=0.1)
    one = loss(unit((1, 0)), unit((1, 0), (0, 1)), torch.tensor([[True, True]]))
    assert one.item() == pytest.approx(0.0)


def test_word_loss_falls_as_the_spoken_word_comes_nearer_than_the_other():
    loss = WordLoss(temperature=0.1)
    spoken = torch.tensor([[True, False], [False, True]])
    right = loss(unit((1, 0), (0, 1)), unit((1, 0), (0, 1)), spoken)
    wrong = loss(unit((1, 0), (0, 1)), unit((0, 1), (1, 0)), spoken)
    assert right < 0.01 < 5 < wrong


def test_a_loss_that_is_not_finite_stops_training():
    class Broken(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": torch.full((1, 2), math.nan)}

    loss = RetrieverLoss(Broken(), 0.7, 0.3, 0.1)
    labels = {"terms": torch.tensor([[SPOKEN]]), "phrases": torch.tensor([[True]])}
    with pytest.raises(EarmarkError, match="term_loss is nan"):
        loss([{}, {}, {}], labels)


def test_aliases_and_other_terms_of_a_chunk_are_never_negatives(frames):
    surfaces = {"new york": "new york", "big apple": "new york", "rome": "rome", "oslo": "oslo"}
    rows = [row("a", "big apple", "the big apple", ("rome",), "new york"), row("b", "oslo", "in oslo")]
    collate = batches(frames, rows, surfaces)
    batch = collate([{"chunk": 0}, {"chunk": 1}])
    assert batch["label"]["terms"].tolist() == [
        [SPOKEN, NOT_SPOKEN, IGNORED, IGNORED],
        [NOT_SPOKEN, SPOKEN, NOT_SPOKEN, NOT_SPOKEN],
    ]  # columns: big apple, oslo, new york, rome


def test_a_term_that_training_does_not_hear_is_no_negative(frames):
    collate = batches(frames, [row("a", "rome", "in rome")], {"rome": "rome", "lima": "lima"})
    assert set(collate.surfaces) == {"rome"}


def test_a_term_outside_the_glossary_is_refused(frames):
    with pytest.raises(InputError, match="atlantis"):
        batches(frames, [row("a", "atlantis", "in atlantis")], {"rome": "rome"})


def test_phrases_are_positives_of_every_chunk_that_says_them(frames):
    rows = [row("a", "rome", "in rome"), row("c", None, "in bed")]
    batch = batches(frames, rows, {"rome": "rome"}, longest_phrase=1)([{"chunk": 0}, {"chunk": 1}])
    assert batch["label"]["phrases"].tolist() == [[False, True, True], [True, True, False]]  # bed, in, rome


def test_a_batch_without_a_whole_word_still_trains_on_its_terms(frames):
    batch = batches(frames, [row("a", "rome", "")], {"rome": "rome"})([{"chunk": 0}])
    assert batch["label"]["phrases"].tolist() == [[False]]
    assert WordLoss(0.1)(unit((1, 0)), unit((1, 0)), batch["label"]["phrases"]).item() == 0
    assert batch["label"]["terms"].tolist() == [[SPOKEN]]


def test_spoken_phrases_are_runs_of_words():
    assert spoken_phrases("so it so", 2) == ["so", "it", "so it", "it so"]


def test_batches_hold_each_chunks_own_frames_and_zeros_beyond(frames):
    together, lengths = frames.batch(["b", "a"])
    alone, _ = frames.batch(["a"])
    assert lengths.tolist() == [8, 3]
    assert torch.equal(together[1, :3], alone[0])
    assert not together[1, 3:].any()


def test_a_chunk_with_features_twice_is_refused(tmp_path):
    one = {"chunk_id": "a", "n_frames": 1, "frames": np.zeros(4, "<f2").tobytes()}
    for shard in ("0", "1"):
        write_table(tmp_path / f"{shard}.parquet", pa.Table.from_pylist([one], schema=FEATURES))
    with pytest.raises(InputError, match="chunk a has features twice"):
        ChunkFrames([tmp_path / "0.parquet", tmp_path / "1.parquet"], ["a"], tmp_path / "cache")


def feature_shards(folder: Path, *shards: str) -> list[Path]:
    paths = [folder / f"{number}.parquet" for number in range(len(shards))]
    for path, chunks in zip(paths, shards, strict=True):
        rows = [
            {"chunk_id": chunk, "n_frames": 1, "frames": np.full(4, ord(chunk), "<f2").tobytes()} for chunk in chunks
        ]
        write_table(path, pa.Table.from_pylist(rows, schema=FEATURES))
    return paths


def test_only_the_frames_that_are_asked_for_are_cached(tmp_path):
    frames = ChunkFrames(feature_shards(tmp_path, "ab", "cd", "e"), ["d", "e"], tmp_path / "cache")
    assert [chunk in frames for chunk in "abcde"] == [False, False, False, True, True]
    assert frames.batch(["e", "d"])[0][:, 0, 0].tolist() == [ord("e"), ord("d")]


def test_features_of_no_chunk_that_is_asked_for_are_refused(tmp_path):
    with pytest.raises(InputError, match="hold none of the 1 chunks"):
        ChunkFrames(feature_shards(tmp_path, "ab"), ["x"], tmp_path / "cache")


def test_under_slurm_the_cache_lies_on_the_nodes_own_disk_and_is_removed(tmp_path, monkeypatch):
    node = tmp_path / "node"
    node.mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(node))
    with cached_frames(feature_shards(tmp_path, "a"), ["a"]):
        assert list(node.rglob("*.arrow"))
    assert not list(node.iterdir())


def test_augmentation_varies_a_chunk_within_its_length_and_leaves_the_input_alone():
    frames, lengths = torch.ones(2, 40, 3), torch.tensor([40, 20])
    frames[1, 20:] = 0
    before = frames.clone()
    augment = FrameAugmentation(crop_frames=4, mask_spans=2, mask_frames=5, noise=0.1)
    varied, new_lengths = augment(frames, lengths, np.random.default_rng(0))
    assert torch.equal(frames, before)
    assert not torch.equal(varied, before)
    for index, length in enumerate(new_lengths.tolist()):
        assert lengths[index] - 8 <= length <= lengths[index]
        assert not varied[index, length:].any()


def test_ngrams_mark_where_words_begin_and_end():
    assert character_ngrams("New", 2, 3) == ["<n", "ne", "ew", "w>", "<ne", "new", "ew>"]
    assert character_ngrams("a be", 2, 2) == ["<a", "a>", "<b", "be", "e>"]


def test_spellings_hash_to_the_same_buckets_in_every_process():
    ids = SpellingTower(1000, 2, 2, 4, 4, 0.0).preprocess(["ox", "York"])["input_ids"]
    assert ids.tolist() == [[950, 619, 329, 0, 0], [126, 860, 501, 672, 33]]


def test_a_text_without_letters_is_refused():
    with pytest.raises(InputError, match="no letter or digit"):
        SpellingTower(64, 2, 3, 8, 8, 0.0).preprocess(["--"])
