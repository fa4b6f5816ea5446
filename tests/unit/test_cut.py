import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from earmark.artifacts import (
    ALIGNMENTS,
    CORPUS,
    UNKNOWN_WORD,
    iterate_rows,
    rejected_path,
    table_counts,
    write_json,
    write_table,
)
from earmark.audio import SAMPLE_RATE, decode_audio
from earmark.chunks.cut import cut_chunks
from earmark.errors import AudioError, InputError

WORD_S = 0.5
SETTINGS = {
    "context_s": 0.6, "min_term_s": 0.06, "max_term_s": 1.2, "no_term_ratio": 1.0, "seed": 1,
    "context_jitter_s": 0.0, "max_no_term_per_recording": None,
    "max_rejected_fraction": 0.9,
}  # fmt: skip
TEXTS = {
    "s1": "x ohm y y volt",
    "s2": "new york city big apple x",
    "s3": "x y x y x y",
    "s4": "y y y y y x ohm",
    "s5": "not aligned",
}


@pytest.fixture
def shard(tmp_path):
    """Two recordings of noise with segments one after the other; words of half a second; one segment not aligned."""
    random = np.random.default_rng(0)
    corpus, alignments = [], []
    for recording, segment_ids in (("r1", ["s1", "s2"]), ("r2", ["s3", "s4", "s5"])):
        offset_s = 0.25
        for segment_id in segment_ids:
            words = TEXTS[segment_id].split()
            corpus.append(
                {
                    "segment_id": segment_id,
                    "recording_id": recording,
                    "speaker_id": f"speaker of {recording}",
                    "audio_path": str(tmp_path / f"{recording}.wav"),
                    "offset_s": offset_s,
                    "duration_s": len(words) * WORD_S,
                    "text": TEXTS[segment_id],
                    "language": "en",
                    "split": None,
                }
            )
            times = [
                {"word": word, "start_s": number * WORD_S, "end_s": (number + 1) * WORD_S, "trusted": True}
                for number, word in enumerate(words)
            ]
            if segment_id != "s5":
                alignments.append({"segment_id": segment_id, "aligner": "x", "status": "aligned", "words": times})
            offset_s += len(words) * WORD_S
        pcm = random.integers(-32768, 32768, round((offset_s + 1) * SAMPLE_RATE)).astype(np.int16)
        soundfile.write(tmp_path / f"{recording}.wav", pcm, SAMPLE_RATE)
    write_table(tmp_path / "corpus.parquet", pa.Table.from_pylist(corpus, schema=CORPUS))
    write_table(tmp_path / "alignments.parquet", pa.Table.from_pylist(alignments, schema=ALIGNMENTS))
    write_json(tmp_path / "glossary.json", {main: {"term": main} for main in ("ohm", "volt", "new york")})
    write_json(tmp_path / "alt2main.json", {"big apple": "new york", "new york city": "new york"})
    write_json(tmp_path / "ambiguous.json", {})
    write_json(tmp_path / "dropped.json", {})
    return tmp_path


def cut(shard, name="chunks.parquet", **changes):
    cut_chunks(
        shard / "corpus.parquet", shard / "alignments.parquet", shard / "glossary.json", shard / "alt2main.json",
        shard / "ambiguous.json", shard / "dropped.json", shard / name, **SETTINGS | changes,
    )  # fmt: skip
    return {row["chunk_id"]: row for row in iterate_rows(shard / name)}


def test_every_mention_becomes_a_chunk_and_long_ones_are_rejected(shard):
    chunks = cut(shard)
    terms = {name: (row["term"], row["main_term"], row["other_terms"]) for name, row in chunks.items() if row["term"]}
    assert terms == {
        "s1-t000": ("ohm", "ohm", []),
        "s1-t001": ("volt", "volt", []),
        "s2-t001": ("big apple", "new york", []),
        "s4-t000": ("ohm", "ohm", []),
    }
    [rejected] = [json.loads(line) for line in rejected_path(shard / "chunks.parquet").read_text().splitlines()]
    assert (rejected["id"], rejected["reason"]) == ("s2-t000", "term_too_long")
    assert "'new york city' lasts 1.500 s" in rejected["detail"]


def test_kept_and_rejected_chunks_add_up_and_are_carried_in_the_table(shard):
    chunks = cut(shard)
    counts = table_counts(shard / "chunks.parquet")
    assert (counts["kept"], counts["rejected"], counts["input"]) == (len(chunks), 1, len(chunks) + 1)


def test_other_main_terms_in_the_context_are_listed(shard):
    chunks = cut(shard, context_s=2.0)
    assert chunks["s1-t000"]["other_terms"] == ["volt"]
    assert chunks["s2-t001"]["other_terms"] == []  # another surface of the same main term


def test_flac_decodes_to_the_exact_slice_of_the_recording(shard):
    chunks = cut(shard)
    offsets = {row["segment_id"]: row["offset_s"] for row in iterate_rows(shard / "corpus.parquet")}
    assert any(row["term"] is None for row in chunks.values())
    for row in chunks.values():
        pcm, _ = soundfile.read(shard / f"{row['recording_id']}.wav", dtype="float32")
        first, last = (round((offsets[row["segment_id"]] + row[key]) * SAMPLE_RATE) for key in ("start_s", "end_s"))
        assert np.array_equal(decode_audio(row["audio"]["bytes"]), pcm[first:last])
        assert row["audio"]["path"] == f"{row['chunk_id']}.flac"
        assert row["sample_rate"] == SAMPLE_RATE


def test_no_term_chunks_lie_in_speech_without_terms_and_are_as_long_as_term_chunks(shard):
    chunks = cut(shard)
    no_term = [row for row in chunks.values() if row["term"] is None]
    lengths = {round(row["end_s"] - row["start_s"], 6) for row in chunks.values() if row["term"]}
    assert no_term
    for row in no_term:
        assert not row["has_term"]
        assert row["main_term"] is row["term_start_s"] is row["term_end_s"] is None
        assert round(row["end_s"] - row["start_s"], 6) in lengths
        assert set(row["text"].split()) <= {"x", "y"}


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.25, 1), (0.5, 2)])
def test_no_term_ratio_sets_their_number(shard, ratio, expected):
    assert sum(row["term"] is None for row in cut(shard, no_term_ratio=ratio).values()) == expected


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_no_term_chunks(shard):
    first = cut(shard, "a.parquet")
    cut(shard, "b.parquet")
    assert (shard / "a.parquet").read_bytes() == (shard / "b.parquet").read_bytes()
    other = cut(shard, "c.parquet", seed=2)
    starts = [
        {name: row["start_s"] for name, row in chunks.items() if row["term"] is None} for chunks in (first, other)
    ]
    assert starts[0] != starts[1]


def test_a_glossary_that_is_never_spoken_gives_an_empty_table(shard):
    write_json(shard / "glossary.json", {"unheard": {"term": "unheard"}})
    write_json(shard / "alt2main.json", {})
    assert cut(shard) == {}


def test_alignments_of_another_corpus_are_refused_by_segment(shard):
    rows = [row for row in iterate_rows(shard / "corpus.parquet") if row["segment_id"] != "s3"]
    write_table(shard / "corpus.parquet", pa.Table.from_pylist(rows, schema=CORPUS))
    with pytest.raises(InputError, match=r"alignments\.parquet: 's3' is not in .*run the stage align again"):
        cut(shard)
    assert not (shard / "chunks.parquet").exists()


def test_a_recording_that_vanished_stops_the_stage_without_an_artifact(shard):
    (shard / "r2.wav").unlink()
    with pytest.raises(AudioError, match=r"r2\.wav: there is no such file"):
        cut(shard)
    assert not (shard / "chunks.parquet").exists()


def test_a_recording_of_which_nothing_is_cut_is_not_opened(shard):
    write_json(shard / "glossary.json", {"volt": {"term": "volt"}})  # spoken in r1 alone
    write_json(shard / "alt2main.json", {})
    (shard / "r2.wav").unlink()
    assert list(cut(shard, no_term_ratio=0.0)) == ["s1-t000"]


def test_a_term_whose_times_are_not_trusted_is_rejected_with_its_reason(shard):
    rows = list(iterate_rows(shard / "alignments.parquet"))
    rows[0]["words"][1]["trusted"] = False  # ohm of "x ohm y y volt"
    write_table(shard / "alignments.parquet", pa.Table.from_pylist(rows, schema=ALIGNMENTS))
    chunks = cut(shard)
    assert "s1-t000" not in chunks
    assert "s1-t001" in chunks
    reasons = {
        row["id"]: row["reason"]
        for row in map(json.loads, rejected_path(shard / "chunks.parquet").read_text().splitlines())
    }
    assert reasons["s1-t000"] == "untrusted_times"


def test_an_ambiguous_alias_makes_no_chunk_and_stays_out_of_no_term_chunks(shard):
    write_json(shard / "ambiguous.json", {"x": "ohm"})
    chunks = cut(shard, context_s=0.0)
    assert {row["term"] for row in chunks.values() if row["has_term"]} == {"ohm", "volt", "big apple"}
    free = [row for row in chunks.values() if not row["has_term"]]
    assert free
    assert all("x" not in row["text"].split() for row in free)


def test_a_dropped_alias_makes_no_chunk_and_is_touched_by_every_chunk_that_holds_it(shard):
    before = cut(shard)
    write_json(shard / "dropped.json", {"x": "henry"})
    chunks = cut(shard)
    assert {name: row["text"] for name, row in chunks.items()} == {name: row["text"] for name, row in before.items()}
    holders = {name for name, row in chunks.items() if "x" in row["text"].split()}
    touching = {name for name, row in chunks.items() if "henry" in row["touched_terms"]}
    assert holders <= touching
    assert {chunks[name]["has_term"] for name in holders} == {True, False}
    assert touching < chunks.keys()


def test_a_name_whose_words_stand_together_in_the_text_alone_is_touched(shard):
    rows = list(iterate_rows(shard / "alignments.parquet"))
    words = next(row["words"] for row in rows if row["segment_id"] == "s1")
    assert [word["word"] for word in words[1:4]] == ["ohm", "y", "y"]
    words[2]["word"] = UNKNOWN_WORD
    write_table(shard / "alignments.parquet", pa.Table.from_pylist(rows, schema=ALIGNMENTS))
    write_json(shard / "dropped.json", {"ohm y": "henry"})
    chunk = cut(shard, context_s=1.0)["s1-t000"]
    assert chunk["text"] == "x ohm y"
    assert "henry" in chunk["touched_terms"]


def test_a_recording_gives_no_more_no_term_chunks_than_asked_for(shard):
    free = [row for row in cut(shard, no_term_ratio=5.0).values() if not row["has_term"]]
    assert max(Counter(row["recording_id"] for row in free).values()) == 2
    free = [row for row in cut(shard, no_term_ratio=5.0, max_no_term_per_recording=1).values() if not row["has_term"]]
    assert max(Counter(row["recording_id"] for row in free).values()) == 1


def test_jitter_changes_the_context_and_never_the_term(shard):
    still, moved = cut(shard), cut(shard, context_jitter_s=0.3)
    names = [name for name, row in still.items() if row["has_term"]]
    assert [(moved[name]["term_start_s"], moved[name]["term_end_s"]) for name in names] == [
        (still[name]["term_start_s"], still[name]["term_end_s"]) for name in names
    ]
    assert any(moved[name]["start_s"] != still[name]["start_s"] for name in names)
    assert cut(shard, context_jitter_s=0.3) == moved
