"""The training objective and the batches it is fed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.artifacts import FEATURES, write_table
from earmark.errors import EarmarkError, InputError
from earmark.pronunciations import EnglishPronouncer
from earmark.retrieval.alignment_batches import AlignmentBatches
from earmark.retrieval.alignment_loss import AlignmentLoss
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.chunk_frames import ChunkFrames, cached_frames
from earmark.retrieval.pooled_batches import PooledBatches, spoken_phrases
from earmark.retrieval.pooled_loss import PooledLoss
from earmark.retrieval.recipes import AlignmentRecipe, Material, Plan
from earmark.retrieval.split_rows import SplitRow
from earmark.retrieval.temperature import Temperature
from earmark.retrieval.term_alignment import alignment_scores, emissions
from earmark.retrieval.term_loss import IGNORED, NOT_SPOKEN, SPOKEN, TermLoss
from earmark.retrieval.term_units import TermUnits
from earmark.retrieval.text_tower import SpellingTower, character_ngrams
from earmark.retrieval.unit_head import UnitHead
from earmark.retrieval.whisper_frames import WhisperFrames
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


def batches(frames: ChunkFrames, rows: list[SplitRow], surfaces: dict[str, str], **limits: Any) -> PooledBatches:
    tower = SpellingTower(64, 2, 3, 8, 8, 0.0)
    limits = {"max_surfaces": 10, "max_phrases": 50, "longest_phrase": 2, **limits}
    return PooledBatches(rows, frames, surfaces, tower, NO_CHANGE, seed=0, **limits)


def test_term_loss_by_hand_for_one_chunk_and_two_surfaces():
    loss = TermLoss(temperature=2.0, no_term_score=0.5)
    value = loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[SPOKEN, NOT_SPOKEN]]))
    by_chunk = -math.log(math.e / (math.e + 1 + math.exp(0.25)))
    assert value.item() == pytest.approx(by_chunk / 2)  # the surface has no other chunk to choose, which costs nothing


def test_an_ignored_surface_has_no_effect_wherever_it_lies():
    loss = TermLoss(temperature=0.1, no_term_score=0.3)
    targets = torch.tensor([[SPOKEN, NOT_SPOKEN, IGNORED], [NOT_SPOKEN, SPOKEN, NOT_SPOKEN]])
    values = [loss(torch.tensor([[1.0, 0.0, ignored], [0.0, 1.0, 0.0]]), targets).item() for ignored in (0.9, -1.0)]
    assert values[0] == pytest.approx(values[1])


def test_a_no_term_chunk_is_pushed_away_from_every_surface():
    loss = TermLoss(temperature=0.1, no_term_score=0.3)
    scores = torch.tensor([[0.9, 0.2]], requires_grad=True)
    loss(scores, torch.full((1, 2), NOT_SPOKEN)).backward()
    assert scores.grad is not None
    assert (scores.grad > 0).all()
    assert loss.no_term_score.grad is not None
    assert loss.no_term_score.grad < 0  # and the threshold is pulled above them


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


def test_a_phrase_that_is_ignored_is_neither_right_nor_wrong():
    loss = WordLoss(temperature=0.1)
    targets = torch.tensor([[SPOKEN, NOT_SPOKEN, IGNORED], [NOT_SPOKEN, SPOKEN, NOT_SPOKEN]])
    values = [
        loss(unit((1, 0), (0, 1)), unit((1, 0), (0, 1), (ignored, 0)), targets[:, :3]).item() for ignored in (1.0, -1.0)
    ]
    # Wherever it lies it costs the first chunk nothing; the second has it as a negative, as far off either way.
    assert values[0] == pytest.approx(values[1])
    worse = loss(unit((1, 0), (0, 1)), unit((1, 0), (0, 1), (1, 0)), targets.where(targets != IGNORED, NOT_SPOKEN))
    assert worse.item() > values[0] + 0.1


def test_a_learned_temperature_begins_at_its_value_moves_and_has_a_floor():
    fixed, learned = Temperature(0.07), Temperature(0.07, learned=True)
    assert fixed() == 0.07
    assert not list(fixed.parameters())
    with torch.no_grad():
        assert float(learned()) == pytest.approx(0.07)
    loss = PooledLoss(torch.nn.Identity(), 0.7, 0.3, 0.07, learn_temperature=True)
    assert [name for name, _ in loss.named_parameters()] == ["term_loss.no_term_score", "term_loss.temperature.log"]
    scores, targets = torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([[SPOKEN, NOT_SPOKEN], [NOT_SPOKEN, SPOKEN]])
    loss.term_loss(scores, targets).backward()
    assert loss.term_loss.temperature.log.grad.abs() > 0
    assert loss.word_loss.temperature is loss.term_loss.temperature  # one for both
    with torch.no_grad():
        learned.log.fill_(-20.0)
    floor = learned()
    assert floor.item() == pytest.approx(0.01)
    floor.backward()
    assert learned.log.grad.item() == pytest.approx(0.01)  # there is a way back


def test_a_loss_that_is_not_finite_stops_training():
    class Broken(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": torch.full((1, 2), math.nan)}

    loss = PooledLoss(Broken(), term_weight=0.7, text_weight=0.3, temperature=0.1)
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


def test_what_is_said_alike_is_no_negative(frames):
    surfaces = {"rome": "rome", "roam": "roam", "knight": "knight", "oslo": "oslo"}
    rows = [
        row("a", "rome", "in rome"),
        row("b", "oslo", "oslo by night"),  # what is heard may be no term, or not meant as one
        row("c", "roam", "we roam"),
        row("d", "knight", "a knight inn"),
    ]
    collate = batches(frames, rows, surfaces, longest_phrase=1, pronouncer=EnglishPronouncer({}))
    batch = collate([{"chunk": number} for number in range(4)])
    assert batch["label"]["terms"].tolist() == [
        [SPOKEN, NOT_SPOKEN, IGNORED, NOT_SPOKEN],
        [NOT_SPOKEN, SPOKEN, NOT_SPOKEN, IGNORED],
        [IGNORED, NOT_SPOKEN, SPOKEN, NOT_SPOKEN],
        [NOT_SPOKEN, NOT_SPOKEN, NOT_SPOKEN, SPOKEN],
    ]  # columns: rome, oslo, roam, knight
    phrases = ["a", "by", "in", "inn", "knight", "night", "oslo", "roam", "rome", "we"]
    for targets, said, like in zip(
        batch["label"]["phrases"].tolist(),
        ({"in", "rome"}, {"oslo", "by", "night"}, {"we", "roam"}, {"a", "knight", "inn"}),
        ({"inn", "roam"}, {"knight"}, {"rome"}, {"in", "night"}),
        strict=True,
    ):
        assert {phrase for phrase, target in zip(phrases, targets, strict=True) if target == SPOKEN} == said
        assert {phrase for phrase, target in zip(phrases, targets, strict=True) if target == IGNORED} == like
    silent = batches(frames, rows, surfaces, longest_phrase=1)([{"chunk": number} for number in range(4)])
    assert IGNORED not in silent["label"]["terms"]  # in another language only spelling counts


def test_mined_negatives_that_are_said_alike_are_left_out(frames):
    rows = [row("a", "rome", "in rome"), row("c", "roam", "we roam"), row("b", "oslo", "oslo")]
    collate = batches(
        frames, rows, {name: name for name in ("rome", "roam", "oslo")},
        pronouncer=EnglishPronouncer({}), hard_negatives={"rome": ["roam", "oslo"]}, max_negatives=5,
    )  # fmt: skip
    assert collate([{"chunk": 0}])["label"]["against"].tolist() == [[True]]  # oslo


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


def test_without_queries_a_chunk_is_the_mean_of_its_real_frames():
    torch.manual_seed(0)
    head = AudioHead(4, 8, embedding_dim=3, queries=0, blocks=0, kernel_size=3, dropout=0.0).eval()
    frames = torch.randn(1, 5, 4)
    with torch.no_grad():
        pooled = head({"frames": frames, "frame_lengths": torch.tensor([3])})["sentence_embedding"]
        mean = head.values(head.norm(head.input(frames[:, :3]))).mean(dim=1)
        assert torch.allclose(pooled, head.output(mean), atol=1e-6)


def test_ngrams_mark_where_words_begin_and_end():
    assert character_ngrams("New", 2, 3) == ["<n", "ne", "ew", "w>", "<ne", "new", "ew>"]
    assert character_ngrams("a be", 2, 2) == ["<a", "a>", "<b", "be", "e>"]


def test_spellings_hash_to_the_same_buckets_in_every_process():
    ids = SpellingTower(1000, 2, 2, 4, 4, 0.0).preprocess(["ox", "York"])["input_ids"]
    assert ids.tolist() == [[950, 619, 329, 0, 0], [126, 860, 501, 672, 33]]


def test_a_text_without_letters_is_refused():
    with pytest.raises(InputError, match="no letter or digit"):
        SpellingTower(64, 2, 3, 8, 8, 0.0).preprocess(["--"])


def letters(*texts: str) -> TermUnits:
    return TermUnits.of("letters", texts, {})


def alignment_batches(
    frames: ChunkFrames, rows: list[SplitRow], surfaces: dict[str, str], units: TermUnits | None = None
) -> AlignmentBatches:
    units = units or letters(*surfaces, *(row.text for row in rows))
    return AlignmentBatches(rows, frames, surfaces, units, NO_CHANGE, max_surfaces=10, seed=0)


def test_an_alignment_batch_holds_what_is_said_and_the_terms_to_choose_among(frames):
    surfaces = {"rome": "rome", "ostia": "rome", "oslo": "oslo", "lima": "lima"}
    rows = [row("b", "rome", "in rome", ("oslo",)), row("d", None, "so")]
    units = letters(*surfaces, "in so")  # a e i l m n o r s t
    batch = alignment_batches(frames, rows, surfaces, units)([{"chunk": 1}, {"chunk": 0}])
    label = batch["label"]
    assert batch["audio"]["frame_lengths"].tolist() == [6, 8]
    assert [row[:count] for row, count in zip(label["said"].tolist(), label["said_counts"].tolist(), strict=True)] == [
        *units.spellings("so"),
        *units.spellings("in rome"),
    ]
    chosen = ["rome", "ostia", "oslo"]  # nobody says lima in training: it is no negative
    for surface, ids, count in zip(chosen, label["units"].tolist(), label["unit_counts"].tolist(), strict=True):
        assert ids[:count] == units.spellings(surface)[0]
    assert label["terms"].tolist() == [[NOT_SPOKEN] * 3, [SPOKEN, IGNORED, IGNORED]]


def test_terms_of_the_same_units_are_no_negatives_of_one_another(frames):
    surfaces = {name: name for name in ("rome", "roam", "oslo")}
    units = TermUnits.of("phonemes", [], {})
    rows = [row("b", "rome", "rome"), row("c", "roam", "roam"), row("d", "oslo", "oslo")]
    batch = alignment_batches(frames, rows, surfaces, units)([{"chunk": number} for number in range(3)])
    assert batch["label"]["terms"].tolist() == [
        [SPOKEN, IGNORED, NOT_SPOKEN],
        [IGNORED, SPOKEN, NOT_SPOKEN],
        [NOT_SPOKEN, NOT_SPOKEN, SPOKEN],
    ]


def test_chunks_whose_transcript_cannot_be_aligned_are_left_out_and_counted(frames, caplog):
    rows = [
        row("a", "rome", "in rome"),  # 6 letters in 3 frames
        row("b", "rome", "in rome"),
        row("c", "bee", "a bee"),  # 4 letters in 5 frames, one for the blank between two e
        row("d", None, ""),
        row("d", "rome", "in x"),
    ]
    kept = alignment_batches(frames, rows, {"rome": "rome", "bee": "bee"}, letters("in rome a bee"))
    assert kept.rows == [rows[1], rows[2]]
    assert "3 of 5 training chunks are left out" in caplog.text


def test_letters_that_are_doubled_need_a_frame_for_the_blank_between_them(frames):
    with pytest.raises(InputError, match="no training chunk with a term"):
        alignment_batches(frames, [row("a", "bee", "bee")], {"bee": "bee"})  # 3 letters in 3 frames


def test_a_chunk_whose_term_cannot_be_spelled_is_left_out_whatever_its_transcript_says(frames):
    rows = [row("b", "x", "in rome"), row("d", "rome", "rome")]
    kept = alignment_batches(frames, rows, {"rome": "rome", "x": "x"}, letters("in rome"))
    assert kept.rows == [rows[1]]
    assert kept([{"chunk": 0}])["label"]["terms"].tolist() == [[SPOKEN]]


def test_only_no_term_chunks_are_nothing_to_train_an_alignment_on(frames):
    rows = [row("a", "rome", "rome"), row("b", None, "in")]
    with pytest.raises(InputError, match="no training chunk with a term"):
        alignment_batches(frames, rows, {"rome": "rome"})


def alignment_plan(frames: ChunkFrames, rows: list[SplitRow], **weights: float) -> Plan:
    """Untrained, without dropout."""
    torch.manual_seed(0)
    config = WhisperConfig(d_model=4, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=4)
    encoder = WhisperFrames.of(WhisperEncoder(config), layer=1)
    recipe = AlignmentRecipe(
        "letters", {}, {"hidden_dim": 16, "blocks": 1, "kernel_size": 3, "dropout": 0.0}, candidates=10,
        **{"text_weight": 0.0, "term_weight": 0.0, **weights}, temperature=1.0, max_surfaces=10,
    )  # fmt: skip
    surfaces = {row.term: row.term for row in rows if row.term is not None}
    cropping = FrameAugmentation(crop_frames=10, mask_spans=0, mask_frames=0, noise=0.0)
    return recipe(encoder, Material(rows, frames, surfaces, cropping, seed=0))


def test_alignment_never_crops_a_chunk_whose_transcript_holds_to_its_ends(frames):
    plan = alignment_plan(frames, [row("b", "rome", "rome"), row("d", "oslo", "oslo")], text_weight=1.0)
    for _ in range(5):
        audio = plan.batches([{"chunk": 0}, {"chunk": 1}])["audio"]
        assert audio["frame_lengths"].tolist() == [8, 6]
        assert torch.equal(audio["frames"], frames.batch(["b", "d"])[0])


@pytest.mark.parametrize("part", ["text", "term"])
def test_each_part_of_the_alignment_loss_alone_reaches_the_unit_head(frames, part):
    plan = alignment_plan(frames, [row("b", "rome", "rome"), row("d", "oslo", "oslo")], **{f"{part}_weight": 1.0})
    batch = plan.batches([{"chunk": 0}, {"chunk": 1}])
    batch["audio"]["frames"].requires_grad_()
    losses = plan.loss([batch["audio"]], batch["label"])
    losses[f"{part}_loss"].backward()
    head = plan.parts["unit_head"]
    assert isinstance(head, UnitHead)
    gradients = [parameter.grad for parameter in head.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    reached = batch["audio"]["frames"].grad.abs().sum(dim=-1) > 0
    assert reached.any(dim=1).all()
    assert not reached[1, 6:].any()  # beyond the chunk's end


def test_terms_cost_nothing_where_they_weigh_nothing(frames):
    plan = alignment_plan(frames, [row("b", "rome", "rome")], text_weight=1.0)
    batch = plan.batches([{"chunk": 0}])
    assert set(plan.loss([batch["audio"]], batch["label"])) == {"text_loss"}
    assert not list(plan.loss.parameters(recurse=False))
    assert isinstance(plan.loss, AlignmentLoss)
    assert plan.loss.term_loss is None


def test_an_alignment_loss_that_is_not_finite_stops_training(frames):
    plan = alignment_plan(frames, [row("b", "rome", "rome")], text_weight=1.0)
    batch = plan.batches([{"chunk": 0}])
    batch["audio"]["frames"][0, 0] = math.nan
    with pytest.raises(EarmarkError, match="text_loss is nan; lower the learning rate"):
        plan.loss([batch["audio"]], batch["label"])


def test_a_head_taught_by_transcripts_alone_hears_a_term_that_nobody_said():
    """Words of four sounds, two frames each and silence between; "cab" is in no transcript, all its sounds are."""
    torch.manual_seed(0)
    sounds = 3 * torch.nn.functional.normalize(torch.randn(5, 12), dim=1)  # silence, a, b, c, d

    def chunk(spelled: list[int]) -> torch.Tensor:
        held = [0, 0, *(frame for sound in spelled for frame in (sound, sound, 0))]
        return sounds[held] + 0.1 * torch.randn(len(held), 12)

    said = [[1, 2, 4], [3, 4, 1], [2, 3, 4], [4, 1, 3], [1, 4, 2], [3, 2, 1], [4, 2, 3], [2, 1, 4]]
    head = UnitHead(12, 16, units=4, blocks=1, kernel_size=3, dropout=0.0)
    audio = {"frames": torch.stack([chunk(word) for word in said]), "frame_lengths": torch.full((len(said),), 11)}
    labels = {"said": torch.tensor(said), "said_counts": torch.full((len(said),), 3)}
    loss = AlignmentLoss(head, text_weight=1.0, term_weight=0.0, temperature=1.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss([dict(audio)], labels)["text_loss"].backward()
        optimizer.step()
    heard = head({"frames": chunk([4, 3, 1, 2])[None], "frame_lengths": torch.tensor([14])})
    terms = torch.tensor([[3, 1, 2], [2, 1, 3], [3, 1, 4], [3, 2, 1]])  # cab; bac, cad, cba
    scores = alignment_scores(emissions(heard["unit_log_probs"], heard["frame_lengths"]), terms, torch.full((4,), 3))[0]
    assert scores.argmax() == 0
    assert scores[0] > 6 > scores[1:].max()
