"""The glossary as an index: searching it, growing it, and refusing what does not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.artifacts import read_table, write_json
from earmark.errors import ConfigError, InputError, TooManyRejectedError
from earmark.retrieval import pooled_index
from earmark.retrieval.alignment_index import AlignmentIndex
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.index import TermIndex, add_surfaces, build_index, load_index, write_index
from earmark.retrieval.model import TermRetriever, alignment_retriever, load_retriever, pooled_retriever
from earmark.retrieval.pooled_index import FLAT_ROWS, HNSW_ROWS, PooledIndex, auto_kind
from earmark.retrieval.term_alignment import alignment_scores, emissions, locate
from earmark.retrieval.term_units import TermUnits, pad_units
from earmark.retrieval.text_tower import SpellingTower
from earmark.retrieval.unit_head import UnitHead
from earmark.retrieval.unit_ngrams import UnitNgrams
from earmark.retrieval.whisper_frames import WhisperFrames

UNITS = 6
TERMS = ["rome", "oslo", "new york", "lima"]
ALIASES = {"big apple": "new york"}
KINDS = ["alignment", "pooled"]


def retriever(kind: str) -> TermRetriever:
    torch.manual_seed(0)
    config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
    encoder = WhisperFrames.of(WhisperEncoder(config), layer=1)
    if kind == "alignment":
        units = TermUnits.of("phonemes", [], {})
        return alignment_retriever(encoder, UnitHead(16, 8, len(units.inventory), 1, 3, 0.0), units)
    head = AudioHead(16, 8, embedding_dim=8, queries=1, blocks=1, kernel_size=3, dropout=0.0)
    return pooled_retriever(encoder, head, SpellingTower(64, 2, 3, 8, 8, 0.0))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        retriever(kind).save(str(folder / kind), create_model_card=False)
    return {kind: folder / kind for kind in KINDS}


def build(model: Path, output: Path, terms: list[str], aliases: dict[str, str], rejected: float = 0.0) -> Path:
    write_json(output.parent / "glossary.json", {term: {"term": term, "aliases": []} for term in terms})
    write_json(output.parent / "alt2main.json", aliases)
    build_index(
        model, output.parent / "glossary.json", output.parent / "alt2main.json", output,
        kind="flat", threads=1, max_rejected_fraction=rejected,
    )  # fmt: skip
    return output


def heard_by(model: Path, inference: bool = True) -> dict[str, Any]:
    random = np.random.default_rng(0)
    clips = [0.1 * random.standard_normal(samples).astype(np.float32) for samples in (24_000, 16_000)]
    loaded = load_retriever(model)
    with torch.inference_mode(inference):
        return loaded(loaded.preprocess(clips) | {"modality": "audio"})


def heard_units(chunks: int, frames: int, seed: int) -> dict[str, Any]:
    """What an audio route that is sure of itself would make of chunks of random units."""
    torch.manual_seed(seed)
    log_probs = (3 * torch.randn(chunks, frames, UNITS + 1)).log_softmax(-1)
    lengths = torch.randint(frames // 2, frames + 1, (chunks,))
    return UnitNgrams(UNITS).eval()({"unit_log_probs": log_probs, "frame_lengths": lengths})


def random_terms(count: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1, UNITS + 1, random.integers(1, 8)).tolist() for _ in range(count)]


def exact(heard: dict[str, Any], spellings: list[list[int]]) -> np.ndarray:
    spelled = pad_units(spellings)
    emitted = emissions(heard["unit_log_probs"], heard["frame_lengths"])
    return alignment_scores(emitted, spelled["units"], spelled["unit_counts"]).numpy()


@pytest.mark.parametrize("candidates", [5000, 20_000])
def test_with_every_row_a_candidate_alignment_is_exact(candidates):
    heard, spellings = heard_units(3, 20, seed=0), random_terms(5000)
    names = tuple(map(str, range(5000)))
    scores = TermIndex(names, names, AlignmentIndex(spellings, UNITS)).scores(heard, candidates)
    assert np.array_equal(scores, exact(heard, spellings))


def test_with_few_candidates_the_best_terms_stay_and_score_as_before():
    heard, spellings = heard_units(4, 20, seed=1), random_terms(5000)
    names = tuple(map(str, range(5000)))
    scores = TermIndex(names, names, AlignmentIndex(spellings, UNITS)).scores(heard, 400)
    everything = exact(heard, spellings)
    kept = np.isfinite(scores)
    assert kept.sum(axis=1).tolist() == [400] * 4
    assert np.allclose(scores[kept], everything[kept], atol=1e-5)
    assert np.allclose(scores.max(axis=1), everything.max(axis=1), atol=1e-5)
    tenth = np.sort(everything, axis=1)[:, -10:-9]
    assert (scores >= tenth).sum() >= 0.8 * (everything >= tenth).sum()


def test_rows_are_located_in_the_chunk_that_is_asked_about():
    heard, spellings = heard_units(2, 20, seed=2), random_terms(40)
    places = AlignmentIndex(spellings, UNITS).locate(heard, 1, [7, 3])
    emitted = emissions(heard["unit_log_probs"], heard["frame_lengths"])[1]
    for row, place in zip((7, 3), places, strict=True):
        first, last = locate(emitted, torch.tensor([spellings[row]]), torch.tensor([len(spellings[row])]))
        assert place == (first.item(), last.item())


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((1500, 64)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def indexes(vectors) -> dict[str, PooledIndex]:
    """One of each kind. Compression to 64 bytes, learnt from 10,000 vectors, would take half a minute."""
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(pooled_index, "_CODE_BYTES", 8)
        smaller.setattr(pooled_index, "_TRAINING_ROWS_PER_LIST", 5)
        return {kind: PooledIndex.of(vectors, kind) for kind in pooled_index.KINDS}


@pytest.mark.parametrize(
    ("kind", "type_", "found"),
    [("flat", faiss.IndexFlat, 1.0), ("hnsw", faiss.IndexHNSW, 0.99), ("ivf_pq", faiss.IndexIVFPQ, 0.95)],
)
def test_each_kind_of_index_finds_the_right_neighbour_also_after_a_round_trip(
    kind, type_, found, vectors, indexes, tmp_path
):
    noise = np.random.default_rng(1).standard_normal((200, 64)).astype(np.float32)
    heard = {"sentence_embedding": torch.from_numpy(vectors[:200] + 0.02 * noise)}
    index = indexes[kind]
    assert isinstance(index.index, type_)
    faiss.write_index(index.index, str(tmp_path / "terms.faiss"))
    loaded = PooledIndex(faiss.read_index(str(tmp_path / "terms.faiss")))
    nearest = (heard["sentence_embedding"].numpy() @ vectors.T).argmax(axis=1)
    rows, scores = loaded.search(heard, 20)
    assert rows.shape == scores.shape == (200, 20)
    assert (rows[:, 0] == nearest).mean() >= found
    assert np.array_equal(index.search(heard, 20)[0], rows)
    assert scores[:, 0].mean() == pytest.approx(1.0, abs=0.2)


@pytest.fixture
def gpu_copies(monkeypatch) -> list[tuple[Any, Any]]:
    """The copies that a FAISS with a GPU would make of indexes, each with its options; they are searched on the CPU."""
    copies: list[tuple[Any, Any]] = []

    def copy(resources: str, device: int, index: Any, options: Any) -> Any:
        assert (resources, device) == ("resources", 0)
        copies.append((faiss.clone_index(index), options))
        return copies[-1][0]

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "GpuClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy, raising=False)
    return copies


def searched(index: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many neighbours are sought in a FAISS index from now on."""
    sought: list[int] = []
    search = index.search
    monkeypatch.setattr(index, "search", lambda vectors, count: sought.append(count) or search(vectors, count))
    return sought


@pytest.mark.parametrize(("kind", "half"), [("flat", False), ("ivf_pq", True)])
def test_a_gpu_searches_one_copy_until_rows_are_added(kind, half, vectors, indexes, gpu_copies, monkeypatch):
    index = PooledIndex(faiss.clone_index(indexes[kind].index))
    heard = {"sentence_embedding": torch.from_numpy(vectors[:5])}
    on_cpu = searched(index.index, monkeypatch)
    expected = indexes[kind].index.search(vectors[:5], 20)[1]
    assert np.array_equal(index.search(heard, 20)[0], expected)
    ((copy, options),) = gpu_copies
    assert options.useFloat16 is half
    on_gpu = searched(copy, monkeypatch)
    assert np.array_equal(index.search(heard, 7)[0], expected[:, :7])
    assert (on_cpu, on_gpu, len(gpu_copies)) == ([], [7], 1)
    index.index.add(vectors[:5])  # as `add_surfaces` does
    rows, _ = index.search(heard, 2)
    assert [set(found) for found in rows.tolist()] == [{row, 1500 + row} for row in range(5)]
    assert (on_cpu, on_gpu, len(gpu_copies)) == ([], [7], 2)


def test_what_a_gpu_cannot_search_is_searched_on_the_cpu(vectors, indexes, gpu_copies, monkeypatch, caplog):
    caplog.set_level("INFO", logger="earmark.retrieval.pooled_index")
    heard = {"sentence_embedding": torch.from_numpy(vectors[:5])}
    graph = PooledIndex(indexes["hnsw"].index)
    assert graph.search(heard, 3)[0][:, 0].tolist() == graph.search(heard, 3)[0][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "FAISS cannot search a graph on a GPU: this index is searched on the CPU"
    ]
    lists = PooledIndex(faiss.clone_index(indexes["ivf_pq"].index))
    lists.index.nprobe = 2049
    lists.search(heard, 3)
    assert "more than 2,048 lists" in caplog.messages[-1] and len(caplog.messages) == 2
    many = np.concatenate([vectors, vectors])
    flat = PooledIndex.of(many, "flat")
    on_cpu = searched(flat.index, monkeypatch)
    assert flat.search(heard, 2049)[0].shape == (5, 2049)
    assert (on_cpu, gpu_copies) == ([2049], [])
    assert flat.search(heard, 2048)[0].shape == (5, 2048)
    assert (on_cpu, len(gpu_copies)) == ([2049], 1)


def test_the_kind_of_index_follows_from_the_number_of_rows():
    sizes = [1, FLAT_ROWS, FLAT_ROWS + 1, HNSW_ROWS, HNSW_ROWS + 1]
    assert [auto_kind(size) for size in sizes] == ["flat", "flat", "hnsw", "hnsw", "ivf_pq"]
    assert isinstance(PooledIndex.of(np.eye(4, dtype=np.float32), "auto").index, faiss.IndexFlat)


def test_an_approximate_index_that_finds_too_few_leaves_the_rest_without_a_score(vectors, indexes):
    names = tuple(map(str, range(len(vectors))))
    index = TermIndex(names, names, indexes["ivf_pq"])
    scores = index.scores({"sentence_embedding": torch.from_numpy(vectors[:3])}, len(vectors))
    assert (np.isfinite(scores).sum(axis=1) < len(vectors)).all()
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]


def test_compression_of_too_few_or_ill_shaped_vectors_is_a_config_error(vectors):
    with pytest.raises(ConfigError, match=r"9,984 vectors.*there are 100 of dimension 64"):
        PooledIndex.of(vectors[:100], "ivf_pq")
    with pytest.raises(ConfigError, match=r"10,000 of dimension 63\. Choose flat"):
        PooledIndex.of(np.zeros((10_000, 63), np.float32), "ivf_pq")


def test_an_alignment_index_has_a_row_for_each_spelling_and_a_pooled_one_for_each_surface(models, tmp_path):
    aligned = load_index(
        build(models["alignment"], tmp_path / "alignment", TERMS, ALIASES), load_retriever(models["alignment"])
    )
    assert aligned.surfaces == ("rome", "oslo", "new york", "new york", "lima", "lima", "big apple")
    assert aligned.main_terms == ("rome", "oslo", "new york", "new york", "lima", "lima", "new york")
    pooled = load_index(build(models["pooled"], tmp_path / "pooled", TERMS, ALIASES), load_retriever(models["pooled"]))
    assert pooled.surfaces == (*TERMS, "big apple")
    assert pooled.main_terms == (*TERMS, "new york")
    assert read_table(tmp_path / "pooled/terms.parquet")["row"].to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_adding_surfaces_equals_building_with_all_at_once(kind, models, tmp_path):
    model = models[kind]
    whole = load_index(build(model, tmp_path / "whole", TERMS, ALIASES), load_retriever(model))
    build(model, tmp_path / "grown", TERMS[:2], {})
    later = {term: term for term in TERMS[1:]} | ALIASES  # oslo is there already
    assert add_surfaces(tmp_path / "grown", model, later) == []
    grown = load_index(tmp_path / "grown", load_retriever(model))
    assert (grown.surfaces, grown.main_terms) == (whole.surfaces, whole.main_terms)
    heard = heard_by(model)
    assert np.allclose(grown.scores(heard, 10), whole.scores(heard, 10), atol=1e-5)
    assert np.isfinite(grown.scores(heard, 10)).all()
    before = (tmp_path / "grown/terms.parquet").read_bytes()
    assert add_surfaces(tmp_path / "grown", model, later) == []
    assert (tmp_path / "grown/terms.parquet").read_bytes() == before


def test_added_surfaces_that_cannot_be_pronounced_are_named_and_the_others_added(models, tmp_path):
    model = models["alignment"]
    build(model, tmp_path / "index", ["rome"], {})
    assert add_surfaces(tmp_path / "index", model, {"2024": "2024"}) == ["2024"]
    assert add_surfaces(tmp_path / "index", model, {"1984": "1984", "oslo": "oslo"}) == ["1984"]
    assert load_index(tmp_path / "index", load_retriever(model)).surfaces == ("rome", "oslo")


def test_unpronounceable_surfaces_are_rejected_rows(models, tmp_path):
    output = build(models["alignment"], tmp_path / "index", ["rome", "2024"], {}, rejected=0.5)
    assert load_index(output, load_retriever(models["alignment"])).surfaces == ("rome",)
    (line,) = (tmp_path / "index.rejected.jsonl").read_text().splitlines()
    assert (json.loads(line)["id"], json.loads(line)["reason"]) == ("2024", "unpronounceable")
    with pytest.raises(TooManyRejectedError, match="2024"):
        build(models["alignment"], tmp_path / "strict", ["rome", "2024"], {}, rejected=0.4)
    assert not (tmp_path / "strict/terms.parquet").exists()
    with pytest.raises(InputError, match="none of the surfaces can be pronounced"):
        build(models["alignment"], tmp_path / "none", ["2024"], {}, rejected=1.0)


def test_a_stale_faiss_file_beside_the_table_is_refused(models, tmp_path):
    model = models["pooled"]
    old = build(model, tmp_path / "old", TERMS, {})
    new = build(model, tmp_path / "new", TERMS, ALIASES)
    shutil.copy(old / "terms.faiss", new / "terms.faiss")
    with pytest.raises(InputError, match="not written together with"):
        load_index(new, load_retriever(model))
    (new / "terms.faiss").unlink()
    with pytest.raises(InputError, match="is missing"):
        load_index(new, load_retriever(model))


def test_an_index_of_the_other_interaction_is_refused(models, tmp_path):
    aligned = build(models["alignment"], tmp_path / "alignment", TERMS, {})
    pooled = build(models["pooled"], tmp_path / "pooled", TERMS, {})
    with pytest.raises(InputError, match="made for another retriever"):
        load_index(pooled, load_retriever(models["alignment"]))
    with pytest.raises(InputError, match="made for another retriever"):
        load_index(aligned, load_retriever(models["pooled"]))
    shutil.copy(pooled / "terms.faiss", aligned / "terms.faiss")  # left over from an earlier run
    with pytest.raises(InputError, match="made for another retriever"):
        load_index(aligned, load_retriever(models["pooled"]))


def test_a_file_that_is_no_faiss_index_is_refused(models, tmp_path, monkeypatch):
    output = build(models["pooled"], tmp_path / "index", TERMS, {})
    monkeypatch.setattr(faiss, "write_index", lambda _, path: Path(path).write_bytes(b"cut short"))
    write_index(load_index(output, load_retriever(models["pooled"])), output, load_retriever(models["pooled"]))
    with pytest.raises(InputError, match="not a FAISS index"):
        load_index(output, load_retriever(models["pooled"]))


def test_an_index_keeps_the_words_that_its_terms_are_weighed_against(models, tmp_path):
    output, model = build(models["alignment"], tmp_path / "plain", TERMS, ALIASES), models["alignment"]
    build_index(
        model, tmp_path / "glossary.json", tmp_path / "alt2main.json", tmp_path / "index",
        kind="flat", threads=1, max_rejected_fraction=0.0, background_count=300, language="en",
    )  # fmt: skip
    index = load_index(tmp_path / "index", load_retriever(model))
    assert index.background is not None and len(set(index.background.words)) == 300
    heard = heard_by(model)
    before = index.scores(heard, 10)
    assert np.array_equal(before, index.scores(heard_by(model, inference=False), 10))  # whatever gradients it carries
    assert not np.allclose(before, load_index(output, load_retriever(model)).scores(heard, 10))
    assert add_surfaces(tmp_path / "index", model, {"milan": "milan"}) == []
    grown = load_index(tmp_path / "index", load_retriever(model))
    assert list(grown.background.words) == list(index.background.words)
    after = grown.scores(heard, 10)
    assert np.allclose(after[:, : before.shape[1]], before)
    assert np.isfinite(after).all() and after.shape[1] > before.shape[1]


def test_a_main_term_that_no_surface_spells_is_not_lost_silently(models, tmp_path):
    """Its alias still finds it."""
    output = build(models["alignment"], tmp_path / "index", ["rome", "2024"], {"twenty twenty four": "2024"}, 0.5)
    assert "2024" in load_index(output, load_retriever(models["alignment"])).main_terms
    assert json.loads((tmp_path / "index.rejected.jsonl").read_text())["id"] == "2024"


def test_a_short_term_is_a_candidate_beside_any_number_of_long_ones():
    """By the sum of n-grams heard, long terms that are half heard beat a short one that is heard whole."""
    units, frames = 12, 24
    log_probs = torch.full((1, frames, units + 1), -20.0)
    said = [1, 2, 3, *range(4, 13)]
    log_probs[0, torch.arange(frames), 0] = 0.0
    log_probs[0, torch.arange(0, 2 * len(said), 2), torch.tensor(said)] = 1.0
    heard = {"unit_log_probs": log_probs.log_softmax(-1), "frame_lengths": torch.tensor([frames])}
    heard = UnitNgrams(units).eval()(heard)
    random = np.random.default_rng(0)
    long = [[*range(4, 13), *random.integers(1, units + 1, 4).tolist()] for _ in range(300)]
    rows, _ = AlignmentIndex([[1, 2, 3], *long], units).search(heard, candidates=20)
    assert 0 in rows[0]


def test_a_term_with_more_units_than_the_chunk_has_frames_scores_low_and_finite():
    heard = {"unit_log_probs": torch.zeros(1, 3, 4).log_softmax(-1), "frame_lengths": torch.tensor([3])}
    heard = UnitNgrams(3).eval()(heard)
    _, scores = AlignmentIndex([[1], [1, 2, 3, 1, 2, 3]], 3).search(heard, candidates=10)
    assert scores[0, 1] == -100 < scores[0, 0]
