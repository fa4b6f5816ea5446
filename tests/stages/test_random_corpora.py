"""Corpora and glossaries drawn at random, through every stage from manifest to export: nothing is lost on the way."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from earmark.artifacts import (
    ALIGNMENTS,
    UNKNOWN_WORD,
    StageTable,
    iterate_rows,
    read_table,
    rejected_path,
    table_counts,
)
from earmark.chunks.cut import cut_chunks
from earmark.chunks.funnel import write_funnel
from earmark.chunks.splits import SPLIT_NAMES, split_chunks
from earmark.corpus.segments import Checks, check_segments
from earmark.corpus.sharding import split_manifest
from earmark.export.formats import FORMATS
from earmark.export.interchange import write_interchange
from earmark.export.splits import export_split
from earmark.export.tokenizer import token_counter
from earmark.export.wavs import write_wavs
from earmark.files import read_json
from earmark.glossary.filters import TermFilters
from earmark.glossary.merge import merge_glossary
from earmark.mentions import MentionFinder
from earmark.text import normalise

SHARDS = ("0000", "0001")
STAGES = ("corpus/manifest", "corpus", "alignments", "chunks")
WAV_S = {"a.wav": 9.0, "b.wav": 6.0}
CHECKS = Checks(
    min_duration_s=0.2, max_duration_s=40.0, min_peak=0.001, min_dynamic_range_db=5.0, max_clipped=0.02,
    min_sample_rate=8000, max_channels=2,
)  # fmt: skip
WORDS = ["alpha", "beta", "gamma", "delta", "ohm", "one", "the", "手", "机", "naïve"]
# With these, every corpus has a term for each split, an ambiguous alias, and room for a chunk without any.
FIRST = [
    {"key": "first-ann", "wav": "a.wav", "txt": "zeta eta lorem", "offset_s": 0, "duration_s": 3.0, "speaker": "ann"},
    {"key": "first-bob", "wav": "b.wav", "txt": "zeta eta" + 4 * " lorem" + " zeta" + 4 * " lorem", "speaker": "bob"},
    {"key": "first-cid", "wav": "b.wav", "txt": "zeta eta", "duration_s": 2, "speaker": "cid", "recording_id": "c"},
]
SPARE = st.sampled_from([None, "", "nan", "-1", "1e400", "soon", [], 10**30])
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)  # halves of surrogate pairs too
PHRASE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
ENTRY = st.fixed_dictionaries(
    {
        "key": st.sampled_from([f"s{number}" for number in range(20)]) | TEXT,
        "wav": st.sampled_from(["a.wav", "b.wav", "gone.wav", "text.wav", "zero.wav"]) | TEXT,
        "txt": st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join) | TEXT,
    },
    optional={
        "offset_s": st.floats(0, 6) | SPARE,
        "duration_s": st.floats(0, 4) | SPARE,
        "speaker": st.sampled_from(["ann", "bob", "Cid & Dee", "../evil"]) | TEXT,
        "recording_id": st.sampled_from(["r1", "r2", "$(touch evil)"]) | TEXT,
    },
)

# A failure is shown as it was drawn: to make it smaller would run the chain for minutes.
CHAIN = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], phases=[Phase.generate]
)


@dataclass(frozen=True)
class Corpus:
    """Manifest lines, glossary files, and the seed of what the aligner makes of them and where chunks are cut."""

    entries: list[Any]
    terms: dict[str, dict[str, Any]]
    aliases: dict[str, str]
    blacklist: list[str]
    seed: int


CORPORA = st.builds(
    Corpus,
    entries=st.lists(ENTRY | st.none() | TEXT, max_size=12).map(lambda entries: [*FIRST, *entries]),
    terms=st.dictionaries(
        PHRASE | TEXT, st.fixed_dictionaries({}, optional={"term": TEXT.filter(str.strip)}), max_size=5
    ).map(lambda terms: {"Zeta-Eta": {}, "Alpha Beta": {}} | terms),
    aliases=st.dictionaries(PHRASE | TEXT, PHRASE | TEXT, max_size=5).map(
        lambda aliases: {"zeta": "zeta eta", "alpha": "alpha beta"} | aliases
    ),
    blacklist=st.lists(st.sampled_from(WORDS), max_size=3),
    seed=st.integers(0, 2**32),
)


@pytest.fixture(scope="module")
def audio_root(tmp_path_factory):
    """Two recordings of noise in bursts, which the audio checks take for speech, and two files that are no audio."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    for (name, seconds), rate in zip(WAV_S.items(), (16_000, 8_000), strict=True):
        bursts = np.sin(np.arange(round(seconds * rate)) / rate * 20) ** 4
        soundfile.write(folder / name, 0.3 * bursts * random.uniform(-1, 1, len(bursts)), rate)
    soundfile.write(folder / "zero.wav", np.zeros(0), 16_000)
    (folder / "text.wav").write_text("not audio")
    return folder


@pytest.fixture(scope="module", autouse=True)
def tokenizer_loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("earmark.export.splits.token_counter", cache(token_counter))
        yield


def align(corpus: Path, output: Path, seed: int) -> None:
    """An aligner that fails, hears unknown words, distrusts some and leaves pauses as it likes; never out of order."""
    with StageTable(output, ALIGNMENTS, unit="segments", max_rejected_fraction=1.0) as table:
        for number, row in enumerate(iterate_rows(corpus)):
            random = np.random.default_rng([seed, number])
            sure = row["segment_id"].startswith("first-")
            table.rejected.input += 1
            if not sure and random.random() < 0.2:
                table.reject(row["segment_id"], "not_aligned", "did not like it")
                continue
            words = row["text"].split()
            # Every word and every pause gets its part of the segment; half of the segments have no pause.
            parts = np.ones(2 * len(words)) if sure else random.exponential(size=2 * len(words))
            parts = parts * np.tile([random.integers(0, 2), 1], len(words)) + 1e-6
            ends = row["duration_s"] * np.cumsum(parts) / parts.sum()
            times = [
                {
                    "word": UNKNOWN_WORD if unknown else word,
                    "start_s": float(ends[2 * place]),
                    "end_s": float(ends[2 * place + 1]),
                    "score": None,
                    "trusted": bool(sure or not (unknown or random.random() < 0.15)),
                }
                for place, word in enumerate(words)
                for unknown in [not sure and random.random() < 0.1]
            ]
            table.keep({"segment_id": row["segment_id"], "aligner": "x", "status": "aligned", "words": times})


def cut(corpus: Corpus, audio_root: Path, folder: Path) -> Path:
    """The chain from manifest to chunks, in a folder of its own below `folder`."""
    folder = folder / f"a/b/{len(list(folder.glob('a/b/*')))}"
    folder.mkdir(parents=True)
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in corpus.entries))
    (folder / "terms.json").write_text(json.dumps(corpus.terms))
    (folder / "aliases.json").write_text(json.dumps(corpus.aliases))
    paths = {stage: {shard: folder / f"{stage}/{shard}.parquet" for shard in SHARDS} for stage in STAGES}
    glossary, every = folder / "glossary", {"max_rejected_fraction": 1.0}
    split_manifest(
        folder / "manifest.jsonl", paths["corpus/manifest"], folder / "corpus/manifest.json", format="jsonl",
        columns={}, subset=None, audio_root=audio_root, language="en", **every,
    )  # fmt: skip
    (folder / "blacklist.txt").write_text("\n".join(corpus.blacklist))
    merge_glossary(
        [folder / "terms.json"], [folder / "aliases.json"], glossary, blacklist=folder / "blacklist.txt",
        filters=TermFilters(), keep_ambiguous=False, language="en",
    )  # fmt: skip
    for shard in SHARDS:
        check_segments(paths["corpus/manifest"][shard], paths["corpus"][shard], CHECKS, **every)
        align(paths["corpus"][shard], paths["alignments"][shard], corpus.seed)
        cut_chunks(
            paths["corpus"][shard], paths["alignments"][shard], glossary / "glossary.json", glossary / "alt2main.json",
            glossary / "ambiguous_aliases.json", glossary / "dropped_aliases.json", paths["chunks"][shard],
            context_s=0.4, context_jitter_s=0.2, min_term_s=0.06, max_term_s=2.0, no_term_ratio=5.0,
            max_no_term_per_recording=None, seed=corpus.seed, **every,
        )  # fmt: skip
    return folder


def export(folder: Path) -> None:
    """The chain from chunks to export."""
    paths = {stage: {shard: folder / f"{stage}/{shard}.parquet" for shard in SHARDS} for stage in STAGES}
    wavs = {shard: folder / f"export/wavs/{shard}" for shard in SHARDS}
    glossary = folder / "glossary/glossary.json"
    for shard in SHARDS:
        write_wavs(paths["chunks"][shard], wavs[shard])
    split_chunks(
        paths["chunks"], glossary, folder / "splits", test_speakers=["ann"], dev_speakers=["cid"],
        unseen_terms=0.2, max_chunks_per_term=3, seed=1,
    )  # fmt: skip
    splits = {name: folder / f"splits/{name}.parquet" for name in SPLIT_NAMES}
    write_funnel(
        folder / "corpus/manifest.json", *(list(paths[name].values()) for name in ("corpus", "alignments", "chunks")),
        splits, folder / "funnel.json",
    )  # fmt: skip
    for name, path in splits.items():
        for number, format in enumerate(FORMATS):
            export_split(
                path, glossary, wavs, folder / f"export/{format}/{name}.jsonl", format=format,
                task=("transcribe", "spot_terms")[number % 2], prompt="?", tokenizer="bundled:qwen",
                max_rejected_fraction=1.0,
            )  # fmt: skip
    write_interchange(list(paths["chunks"].values()), list(wavs.values()), folder / "merged.json", context_s=0.4)


def ids(path: Path, column: str) -> list[str]:
    """Those that a table keeps and those that it rejects; both are as many as its counts say."""
    kept, rejected = [row[column] for row in iterate_rows(path, columns=[column])], rejected_ids(path)
    counts = table_counts(path)
    assert (len(kept), len(rejected)) == (counts["kept"], counts["rejected"])
    return kept + rejected


def rejected_ids(path: Path) -> list[str]:
    lines = rejected_path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["id"] for line in lines if line]


def occurrences(surfaces: set[str], words: list[str]) -> list[tuple[int, int]]:
    """Where any surface stands, found by looking everywhere."""
    places = [(first, last) for last in range(len(words) + 1) for first in range(last)]
    return [(first, last) for first, last in places if " ".join(words[first:last]) in surfaces]


@settings(CHAIN, max_examples=25)
@given(corpus=CORPORA)
def test_every_row_is_kept_or_rejected_from_manifest_to_export(corpus, audio_root, tmp_path):
    folder = cut(corpus, audio_root, tmp_path)
    export(folder)
    funnel = read_json(folder / "funnel.json")
    assert funnel["steps"][0]["input"] == len(corpus.entries)

    manifest = [
        row["segment_id"] for shard in SHARDS for row in iterate_rows(folder / f"corpus/manifest/{shard}.parquet")
    ]
    stated = len(manifest) + len(rejected_ids(folder / "corpus/manifest.json"))
    assert stated == len(corpus.entries)
    checked = [name for shard in SHARDS for name in ids(folder / f"corpus/{shard}.parquet", "segment_id")]
    assert Counter(checked) == Counter(set(manifest))
    for shard in SHARDS:
        kept = [row["segment_id"] for row in iterate_rows(folder / f"corpus/{shard}.parquet")]
        assert sorted(ids(folder / f"alignments/{shard}.parquet", "segment_id")) == sorted(kept)

    chunks = [row["chunk_id"] for shard in SHARDS for row in iterate_rows(folder / f"chunks/{shard}.parquet")]
    placed = [name for split in SPLIT_NAMES for name in ids(folder / f"splits/{split}.parquet", "chunk_id")]
    assert Counter(placed) == Counter(set(chunks))
    assert {f"{entry['key']}-t000" for entry in FIRST} <= set(chunks)
    assert funnel["chunks"]["no_term"] > 0

    wavs = {str(path) for path in folder.rglob("*.wav")}
    assert len(wavs) == len(chunks)
    assert {entry["term_chunk_audio"] for entry in read_json(folder / "merged.json")} == wavs
    for split in SPLIT_NAMES:
        rows = table_counts(folder / f"splits/{split}.parquet")["kept"]
        for format in FORMATS:
            path = folder / f"export/{format}/{split}.jsonl"
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            assert len(lines) + len(rejected_ids(path)) == rows
            if format == "flat":
                assert {line["audio"] for line in lines} <= wavs
    for split in ("train", "dev"):
        rows = read_table(folder / f"splits/{split}.parquet").to_pylist()
        assert max(Counter(row["main_term"] for row in rows if row["has_term"]).values(), default=0) <= 3
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


@settings(CHAIN, max_examples=40)
@given(corpus=CORPORA)
def test_no_term_chunks_overlap_no_surface_and_no_word_of_unknown_place(corpus, audio_root, tmp_path):
    folder = cut(corpus, audio_root, tmp_path)
    files = ("glossary", "alt2main", "ambiguous_aliases")
    surfaces = {surface for name in files for surface in read_json(folder / f"glossary/{name}.json")}
    for shard in SHARDS:
        durations = {row["segment_id"]: row["duration_s"] for row in iterate_rows(folder / f"corpus/{shard}.parquet")}
        aligned = {row["segment_id"]: row["words"] for row in iterate_rows(folder / f"alignments/{shard}.parquet")}
        for chunk in iterate_rows(folder / f"chunks/{shard}.parquet"):
            words = aligned[chunk["segment_id"]]
            assert 0 <= chunk["start_s"] < chunk["end_s"] <= durations[chunk["segment_id"]]
            if chunk["has_term"]:
                assert chunk["start_s"] <= chunk["term_start_s"] < chunk["term_end_s"] <= chunk["end_s"]
                continue
            taken = [(word["start_s"], word["end_s"]) for word in words if not word["trusted"]]
            for first, last in occurrences(surfaces, [word["word"] for word in words]):
                taken.append((words[first]["start_s"], words[last - 1]["end_s"]))
            for start_s, end_s in taken:
                assert end_s <= chunk["start_s"] or start_s >= chunk["end_s"], (chunk["chunk_id"], start_s, end_s)


@settings(CHAIN, max_examples=40)
@given(corpus=CORPORA, said=st.permutations(["zeta eta", "beta gamma", "手", "lorem", "lorem", "alpha", "ohm"]))
def test_no_training_or_dev_text_holds_any_name_of_an_unseen_term(corpus, said, audio_root, tmp_path):
    # Spoken by who trains: a dropped alias, one that another filter drops, an ambiguous one, and a term to cut around.
    entry = {"key": "first-dan", "wav": "a.wav", "txt": " ".join(said), "offset_s": 3.0, "duration_s": 4.0}
    dropped = {"beta gamma": "alpha beta", "手": "alpha beta", "delta one": "zeta eta"}
    corpus = replace(
        corpus, entries=[*corpus.entries, entry | {"speaker": "dan"}], aliases=corpus.aliases | dropped,
        terms={main: entry for main, entry in corpus.terms.items() if "beta gamma" not in normalise(main)},
        blacklist=["beta gamma", "delta one"],
    )  # fmt: skip
    folder = cut(corpus, audio_root, tmp_path)
    paths = {shard: folder / f"chunks/{shard}.parquet" for shard in SHARDS}
    glossary = read_json(folder / "glossary/glossary.json")
    split_chunks(
        paths, folder / "glossary/glossary.json", folder / "splits", test_speakers=["ann"], dev_speakers=["cid"],
        unseen_terms=["Alpha-Beta"], max_chunks_per_term=None, seed=corpus.seed,
    )  # fmt: skip
    names = {main: main for main in glossary}
    for name in ("alt2main", "ambiguous_aliases", "dropped_aliases"):
        names |= read_json(folder / f"glossary/{name}.json")
    unseen_names = {name for name, main in names.items() if main == "alpha beta"}
    assert {"alpha beta", "beta gamma"} <= unseen_names
    for split in ("train", "dev"):
        for row in iterate_rows(folder / f"splits/{split}.parquet"):
            assert not occurrences(unseen_names, row["text"].split()), row


_SURFACES = st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" ".join), max_size=6)


@settings(max_examples=300)
@given(surfaces=_SURFACES, ambiguous=_SURFACES, words=st.lists(st.sampled_from("abcd"), max_size=12))
def test_ambiguous_surfaces_occur_but_take_no_words_from_mentions(surfaces, ambiguous, words):
    plain = surfaces - ambiguous
    finder = MentionFinder(dict.fromkeys(surfaces, "main"), dict.fromkeys(ambiguous, "main"))
    found = [(mention.first, mention.last) for mention in finder.find_all(words)]
    assert sorted(found) == sorted(occurrences(surfaces | ambiguous, words))
    # Mentions, by painting over what is found: the longest first, then from left to right.
    free, mentions = set(range(len(words))), []
    for first, last in sorted(occurrences(plain, words), key=lambda place: (place[0] - place[1], place)):
        if free.issuperset(range(first, last)):
            free -= set(range(first, last))
            mentions.append((first, last))
    assert [(mention.first, mention.last) for mention in finder.find(words)] == sorted(mentions)
