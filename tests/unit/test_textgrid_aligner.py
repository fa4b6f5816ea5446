import json
import tarfile
import zipfile
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from earmark.alignment.backends import make_aligner
from earmark.alignment.shard import align_shard
from earmark.alignment.textgrid_aligner import TextGridAligner
from earmark.alignment.textgrid_files import TEXTGRIDS, pack_textgrids
from earmark.artifacts import CORPUS, iterate_rows, read_table, rejected_path, table_counts, write_table
from earmark.corpus.readers import read_corpus


def short_text(tiers, start_s, end_s):
    """`tiers`: name -> [(start_s, end_s, label)]; a tier holds gaps as its intervals do."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", start_s, end_s, "<exists>", len(tiers)]
    for name, intervals in tiers.items():
        lines += ['"IntervalTier"', f'"{name}"', start_s, end_s, len(intervals)]
        lines += [value for start, end, label in intervals for value in (start, end, f'"{label}"')]
    return "\n".join(map(str, lines)) + "\n"


def long_text(tiers, start_s, end_s):
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", f"xmin = {start_s} ", f"xmax = {end_s} "]
    lines += ["tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f'        name = "{name}" ']
        lines += [f"        xmin = {start_s} ", f"        xmax = {end_s} "]
        lines += [f"        intervals: size = {len(intervals)} "]
        for place, (start, end, label) in enumerate(intervals, start=1):
            lines += [f"        intervals [{place}]:", f"            xmin = {start} ", f"            xmax = {end} "]
            lines += [f'            text = "{label}" ']
    return "\n".join(lines) + "\n"


def corpus_table(path, rows):
    counts = {b"earmark_counts": json.dumps({"kept": len(rows)}).encode()}
    write_table(path, pa.Table.from_pylist(rows, schema=CORPUS.with_metadata(counts)))


def segment(segment_id, offset_s, duration_s, text, recording_id="r", speaker_id="s"):
    return {
        "segment_id": segment_id, "recording_id": recording_id, "speaker_id": speaker_id, "audio_path": "/r.wav",
        "offset_s": offset_s, "duration_s": duration_s, "text": text, "language": "en",
    }  # fmt: skip


def aligned(tmp_path, rows, textgrids, offset):
    """Align `rows` with `textgrids` (a packed table); returns {segment_id: words} and {segment_id: rejected row}."""
    corpus_table(tmp_path / "corpus.parquet", rows)
    output = tmp_path / "alignments.parquet"
    settings = {"path": "somewhere", "offset": offset}
    aligner = make_aligner("textgrid", settings, threads=1, seed=1, textgrids=textgrids, keep=None)
    align_shard(tmp_path / "corpus.parquet", output, aligner, max_differing_words=0.0, max_rejected_fraction=1.0)
    lines = rejected_path(output).read_text().splitlines()
    words = {
        row["segment_id"]: [(w["word"], w["start_s"], w["end_s"]) for w in row["words"]] for row in iterate_rows(output)
    }
    assert table_counts(output)["input"] == len(rows)
    return words, {row["id"]: row for row in map(json.loads, lines)}


def pack(tmp_path, grids):
    """`grids`: stem -> content."""
    rows = [
        {"name": f"in/{stem}.TextGrid", "stem": stem, "kind": "segment", "data": content.encode()}
        for stem, content in grids.items()
    ]
    write_table(tmp_path / "packed.parquet", pa.Table.from_pylist(rows, schema=TEXTGRIDS))
    return tmp_path / "packed.parquet"


ONE_TWO = [(0.0, 0.5, "one"), (0.5, 1.0, "two")]


@pytest.fixture(scope="module")
def known(demo):
    """20 segments of the demo in 4 recordings, as CORPUS rows, and their words by segment_id."""
    times = {row["segment_id"]: row["words"] for row in read_table(demo / "word_times.parquet").to_pylist()}
    entries = read_corpus(
        "tsv", demo / "manifest.tsv", audio_root=None, columns={}, subset=None, language="en"
    )  # fmt: skip
    rows = []
    for _, recording in groupby(entries, key=lambda entry: entry.recording_id):
        for e in list(recording)[:5]:
            rows.append(segment(e.segment_id, e.offset_s, e.duration_s, e.text, e.recording_id, e.speaker_id))
        if len(rows) == 20:
            break
    words = {
        row["segment_id"]: [(w["word"], w["start_s"], w["end_s"]) for w in times[row["segment_id"]]] for row in rows
    }
    return rows, words


def filled(intervals, start_s, end_s):
    """The intervals with silence between them, as MFA writes them."""
    result, place_s = [], start_s
    for start, end, label in intervals:
        result += [(place_s, start, "")] if start > place_s else []
        result.append((start, end, label))
        place_s = end
    return result + ([(place_s, end_s, "")] if place_s < end_s else [])


def moved(intervals, by_s):
    return [(start + by_s, end + by_s, label) for start, end, label in intervals]


def textgrids_of(known, *, relative_to, speakers, text):
    """{path inside the source: content}."""
    rows, words = known
    grids = {}

    def content(row, intervals, start_s, end_s):
        tiers = {"words": filled(intervals, start_s, end_s)}
        if speakers == "several":
            tiers = {
                "other - words": [(start_s, end_s, "nothing of this")],
                f"{row['speaker_id']} - words": tiers["words"],
                f"{row['speaker_id']} - phones": [(start_s, end_s, "")],
            }
        return text(tiers, start_s, end_s)

    spans = {row["segment_id"]: [(s, e, w) for w, s, e in words[row["segment_id"]]] for row in rows}
    if relative_to == "segment":
        for row in rows:
            name = f"{row['speaker_id']}/{row['segment_id']}.TextGrid"
            grids[name] = content(row, spans[row["segment_id"]], 0, row["duration_s"])
    else:
        for recording_id, group in groupby(rows, key=lambda row: row["recording_id"]):
            segments = list(group)
            intervals = [i for row in segments for i in moved(spans[row["segment_id"]], row["offset_s"])]
            end_s = segments[-1]["offset_s"] + segments[-1]["duration_s"] + 3
            grids[f"{recording_id}.TextGrid"] = content(segments[0], intervals, 0, end_s)
    return grids


def put(path, grids, encoding):
    folder = path if not path.suffix else path.with_suffix(".folder")
    for name, content in grids.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding=encoding)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in grids:
                archive.write(folder / name, name)
    elif path.suffix:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            archive.add(folder, "grids")
    return path


@pytest.mark.parametrize("relative_to", ["segment", "recording"])
@pytest.mark.parametrize("speakers", ["one", "several"])
@pytest.mark.parametrize(
    ("source", "text", "encoding"),
    [
        ("grids", long_text, "utf-8"),
        ("grids.tar", short_text, "utf-16"),
        ("grids.tgz", long_text, "utf-16"),
        ("grids.zip", short_text, "utf-8-sig"),
    ],
)
def test_known_words_come_back_exactly(tmp_path, known, relative_to, speakers, source, text, encoding):
    rows, words = known
    grids = textgrids_of(known, relative_to=relative_to, speakers=speakers, text=text)
    shards = {}
    for number in range(2):
        shards[f"{number:04d}"] = [row for row in rows if hash_of(row["recording_id"]) % 2 == number]
        corpus_table(tmp_path / f"corpus/{number:04d}.parquet", shards[f"{number:04d}"])
    put(tmp_path / source, grids, encoding)
    pack_textgrids(
        tmp_path / source,
        {shard: tmp_path / f"corpus/{shard}.parquet" for shard in shards},
        {shard: tmp_path / f"textgrids/{shard}.parquet" for shard in shards},
        tmp_path / "textgrids.json",
    )
    for offset in (relative_to, "auto"):
        found = {}
        for shard, of_shard in shards.items():
            aligned_words, rejected = aligned(tmp_path, of_shard, tmp_path / f"textgrids/{shard}.parquet", offset)
            assert rejected == {}
            found |= aligned_words
        assert sorted(found) == sorted(words)
        for key, expected in words.items():
            assert [word for word, _, _ in found[key]] == [word for word, _, _ in expected]
            edges = [time for _, start, end in found[key] for time in (start, end)]
            assert edges == pytest.approx([time for _, start, end in expected for time in (start, end)], abs=1e-6)


def hash_of(recording_id):
    return sum(recording_id.encode())


def test_a_segment_without_textgrid_is_told_and_one_in_bad_form_too(tmp_path):
    good = short_text({"words": ONE_TWO}, 0, 1)
    rows = [segment(key, 0.0, 1.0, "one two", recording_id="rec") for key in ("a", "b", "c", "d")]
    grids = {"a": good, "c": good[:60], "d": short_text({"phones": ONE_TWO}, 0, 1)}
    words, rejected = aligned(tmp_path, rows, pack(tmp_path, grids), "segment")
    assert words == {"a": [("one", 0.0, 0.5), ("two", 0.5, 1.0)]}
    assert {key: row["reason"] for key, row in rejected.items()} == {
        "b": "no_textgrid", "c": "bad_textgrid", "d": "bad_textgrid",
    }  # fmt: skip
    assert rejected["b"]["detail"] == "no TextGrid is named after it, nor after its recording rec"
    assert rejected["c"]["detail"].startswith("in/c.TextGrid: ")
    assert "the interval tiers are: 'phones'" in rejected["d"]["detail"]


def test_a_segments_own_textgrid_comes_before_its_recordings(tmp_path):
    grids = {
        "r": short_text({"words": moved(ONE_TWO, 2.0)}, 0, 9),
        "own": short_text({"words": [(0.0, 0.4, "one"), (0.4, 1.0, "two")]}, 0, 1),
    }
    rows = [segment("own", 2.0, 1.0, "one two"), segment("other", 2.0, 1.0, "one two")]
    words, _ = aligned(tmp_path, rows, pack(tmp_path, grids), "auto")
    assert words == {
        "own": [("one", 0.0, 0.4), ("two", 0.4, 1.0)],
        "other": [("one", 0.0, 0.5), ("two", 0.5, 1.0)],
    }


def test_a_word_across_the_border_goes_to_the_segment_that_holds_its_middle_and_is_clipped(tmp_path):
    intervals = [(0.0, 1.0, "one"), (1.0, 1.9, "two"), (1.9, 2.2, "three"), (2.2, 3.0, "four")]
    rows = [segment("first", 0.0, 2.0, "one two"), segment("second", 2.0, 1.0, "three four")]
    words, rejected = aligned(
        tmp_path, rows, pack(tmp_path, {"r": short_text({"words": intervals}, 0, 3)}), "recording"
    )
    assert rejected == {}
    assert words["first"] == [("one", 0.0, 1.0), ("two", 1.0, 1.9)]
    assert [word for word, _, _ in words["second"]] == ["three", "four"]
    assert [time for _, start, end in words["second"] for time in (start, end)] == pytest.approx([0.0, 0.2, 0.2, 1.0])


@pytest.mark.parametrize(
    ("stem", "span", "start_s", "offset_s", "says"),
    [
        ("a", (0, 1.04), 0.0, 5.0, None),  # its own, as long within 50 ms
        ("a", (0, 0.96), 0.0, 5.0, None),
        ("a", (0, 1.06), None, 5.0, "in/a.TextGrid goes from 0.000 to 1.060 s"),
        ("a", (5, 6), 5.0, 5.0, None),  # its own, cut out of the recording's with its times
        ("a", (0, 30), 5.0, 5.0, None),  # its own, as long as the recording
        ("a", (0, 1), 0.0, 0.0, None),
        ("r", (0, 30), 5.0, 5.0, None),
        ("r", (0, 5.97), 5.0, 5.0, None),
        ("r", (0, 5.9), None, 5.0, "nor covers its 5.000 to 6.000 s of the recording; set align.textgrid.offset"),
        ("r", (0, 1), None, 5.0, "neither the segment's 0 to 1.000 s"),
    ],
)
def test_auto_takes_the_segments_start_for_a_file_as_long_as_it_and_else_the_recordings(
    tmp_path, caplog, stem, span, start_s, offset_s, says
):
    intervals = [(0.1, 0.5, "one"), (0.5, 0.9, "two")]
    grid = short_text({"words": moved(intervals, start_s or 0.0)}, *span)
    with caplog.at_level("INFO"):
        words, rejected = aligned(
            tmp_path, [segment("a", offset_s, 1.0, "one two")], pack(tmp_path, {stem: grid}), "auto"
        )
    if says:
        assert rejected["a"]["reason"] == "offset_unclear"
        assert says in rejected["a"]["detail"]
        return
    assert [time for _, start, end in words["a"] for time in (start, end)] == pytest.approx([0.1, 0.5, 0.5, 0.9])
    chosen = "in 0 segments, of the recording in 1" if start_s else "in 1 segments, of the recording in 0"
    assert f"times were counted from the start of the segment {chosen}" in caplog.text


def test_offset_recording_is_not_guessed(tmp_path):
    grid = short_text({"words": ONE_TWO}, 0, 1)
    rows = [segment("a", 5.0, 1.0, "one two")]
    _, rejected = aligned(tmp_path, rows, pack(tmp_path, {"a": grid}), "recording")
    assert rejected["a"]["reason"] == "not_aligned"
    words, _ = aligned(tmp_path, rows, pack(tmp_path, {"a": grid}), "segment")
    assert [word for word, _, _ in words["a"]] == ["one", "two"]


def test_words_of_another_transcript_are_refused_and_unknown_ones_take_its_spelling(tmp_path):
    grids = {
        "wrong": short_text({"words": [(0.0, 0.5, "one"), (0.5, 1.0, "three")]}, 0, 1),
        "unknown": short_text({"words": [(0.0, 0.5, "one"), (0.5, 1.0, "<unk>")]}, 0, 1),
        "silence": short_text({"words": [(0.0, 0.5, "Silence"), (0.5, 1.0, "sil")]}, 0, 1),
    }
    rows = [segment("wrong", 0.0, 1.0, "one two"), segment("unknown", 0.0, 1.0, "one two"),
            segment("silence", 0.0, 1.0, "silence")]  # fmt: skip
    words, rejected = aligned(tmp_path, rows, pack(tmp_path, grids), "segment")
    assert list(rejected) == ["wrong"]
    assert rejected["wrong"]["reason"] == "words_differ"
    assert [word for word, _, _ in words["unknown"]] == ["one", "two"]
    assert [word for word, _, _ in words["silence"]] == ["silence"]


def test_textgrids_in_any_order_over_many_row_groups_are_found(tmp_path):
    keys = [f"k{number}" for number in range(40)]
    rows = [
        {"name": key, "stem": key, "kind": "segment",
         "data": short_text({"words": [(0, 1, f"word{key}")]}, 0, 1).encode()}
        for key in sorted(keys, key=lambda key: key[::-1])
    ]  # fmt: skip
    path = tmp_path / "packed.parquet"
    with pq.ParquetWriter(path, TEXTGRIDS) as writer:
        for first in range(0, 40, 3):
            writer.write_table(pa.Table.from_pylist(rows[first : first + 3], schema=TEXTGRIDS))
    words, rejected = aligned(tmp_path, [segment(key, 0.0, 1.0, f"word{key}") for key in keys], path, "segment")
    assert rejected == {}
    assert words == {key: [(f"word{key}", 0.0, 1.0)] for key in keys}


def test_an_empty_shard_needs_no_textgrid(tmp_path):
    path = tmp_path / "packed.parquet"
    write_table(path, TEXTGRIDS.empty_table())
    assert aligned(tmp_path, [], path, "auto") == ({}, {})
    assert TextGridAligner(path, offset="auto").name == "textgrid"
