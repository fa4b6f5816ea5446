"""The aligner `mfa` against a stand-in for MFA's program; tests/mfa_stand_in/mfa says what of MFA it reproduces."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from earmark.alignment import mfa
from earmark.alignment.mfa import MfaAligner
from earmark.alignment.mfa_corpus import write_dictionary
from earmark.alignment.shard import align_shard
from earmark.alignment.textgrid_aligner import TextGridAligner
from earmark.alignment.textgrid_files import pack_textgrids
from earmark.artifacts import ALIGNMENTS, CORPUS, StageTable, iterate_rows, rejected_path
from earmark.errors import AudioError, ConfigError, EarmarkError, InputError, TooManyRejectedError

STAND_IN = Path(__file__).resolve().parent.parent / "mfa_stand_in/mfa"
SETTINGS = {"g2p_model": None, "beam": 10, "retry_beam": 40, "threads": 2, "keep_textgrids": None}


def demo_rows(demo, count=10):
    """CORPUS rows of demo segments, two a recording, and their true word times."""
    with (demo / "manifest.tsv").open(encoding="utf-8") as file:
        given = list(csv.DictReader(file, delimiter="\t"))
    rows, taken = [], {}
    for row in sorted(given, key=lambda row: (row["recording_id"], float(row["offset_s"]))):
        if taken.setdefault(row["recording_id"], 0) == 2 or len(rows) == count:
            continue
        taken[row["recording_id"]] += 1
        rows.append(
            dict.fromkeys(CORPUS.names)
            | {key: row[key] for key in ("segment_id", "recording_id", "text", "language")}
            | {"speaker_id": row["speaker"], "audio_path": str(demo / row["audio"])}
            | {"offset_s": float(row["offset_s"]), "duration_s": float(row["duration_s"])}
        )
    wanted = {row["segment_id"] for row in rows}
    times = {row["segment_id"]: row["words"] for row in iterate_rows(demo / "word_times.parquet")}
    return rows, {key: [[w["word"], w["start_s"], w["end_s"]] for w in times[key]] for key in wanted}


class Bench:
    """A shard of the demo corpus, a root with downloaded models as a user has one, and a scratch folder."""

    def __init__(self, folder, program, rows, times):
        self.folder, self.program, self.rows, self.times = folder, program, rows, times
        self.ids = [row["segment_id"] for row in rows]
        self.scratch, self.root = folder / "scratch", folder / "root"
        self.scratch.mkdir()
        self.corpus = self.write_corpus("corpus.parquet", rows)
        self.model("dictionary/english_us_arpa.dict").write_text(
            "".join(f"{word}\t0.99\t0.5\tAH0 N\n" for word in sorted({w for row in rows for w in row["text"].split()}))
        )
        self.told()

    def model(self, name):
        path = self.root / "pretrained_models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_corpus(self, name, rows):
        with StageTable(self.folder / name, CORPUS, unit="segments", max_rejected_fraction=0) as table:
            for row in rows:
                table.rejected.input += 1
                table.keep(row)
        return self.folder / name

    def told(self, **told):
        """Tell the stand-in, through the acoustic model, what it is to find."""
        told = {"times": self.times, "record": str(self.folder / "record.jsonl")} | told
        with zipfile.ZipFile(self.model("acoustic/english_us_arpa.zip"), "w") as archive:
            archive.writestr("stand_in.json", json.dumps(told, default=str))

    def aligner(self, **settings):
        models = {"acoustic_model": "english_us_arpa", "dictionary": "english_us_arpa"}
        return MfaAligner(**{"program": str(self.program)} | models | SETTINGS | settings)

    def align(self, output="alignments.parquet", corpus=None, limit=1.0, **settings):
        """(rows by segment, rejected rows by segment) of the shard."""
        path = self.folder / output
        align_shard(
            corpus or self.corpus, path, self.aligner(**settings), max_differing_words=0.0, max_rejected_fraction=limit
        )
        rejected = [json.loads(line) for line in rejected_path(path).read_text().splitlines()]
        return {row["segment_id"]: row for row in iterate_rows(path)}, {row["id"]: row for row in rejected}

    def runs(self):
        """What the stand-in recorded of each `mfa align`."""
        path = self.folder / "record.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def option(self, run, name):
        arguments = self.runs()[run]["arguments"]
        return arguments[arguments.index(name) + 1]

    def times_of(self, row):
        return [[w["word"], pytest.approx(w["start_s"], abs=2e-3), pytest.approx(w["end_s"], abs=2e-3)] for w in row]


@pytest.fixture(scope="module")
def demo_segments(demo):
    return demo_rows(demo)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The stand-in in a folder of its own, run by this Python (-S: it starts faster)."""
    path = tmp_path_factory.mktemp("mfa") / "mfa"
    path.write_text(STAND_IN.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable} -S", 1))
    path.chmod(0o755)
    return path


@pytest.fixture
def bench(tmp_path, program, demo_segments, monkeypatch):
    made = Bench(tmp_path, program, *demo_segments)
    monkeypatch.setenv("MFA_ROOT_DIR", str(made.root))
    monkeypatch.setenv("SLURM_TMPDIR", str(made.scratch))
    yield made
    assert list(made.scratch.iterdir()) == []
    assert sorted(path.name for path in made.root.iterdir()) == ["pretrained_models"]


@pytest.mark.parametrize("form", ["long_textgrid", "short_textgrid"])
def test_every_segment_comes_back_with_the_word_times_that_mfa_found(bench, form):
    bench.told(format=form)
    rows, rejected = bench.align()
    assert list(rows) == bench.ids
    assert rejected == {}
    for segment_id, row in rows.items():
        assert bench.times_of(row["words"]) == bench.times[segment_id]
        assert (row["status"], row["aligner"], row["quality"]) == ("aligned", "mfa-3.4.3", None)
        assert all(word["trusted"] and word["score"] is None for word in row["words"])
    assert pq.read_schema(bench.folder / "alignments.parquet") == ALIGNMENTS


def test_the_command_line_and_the_environment_are_exact(bench, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("MFA_PROFILE", "the user's")
    bench.align(g2p_model=str(bench.model("acoustic/english_us_arpa.zip")))
    (run,) = bench.runs()
    scratch = Path(run["environment"]["MFA_ROOT_DIR"]).parent
    assert run["arguments"] == [
        "align",
        str(scratch / f"corpus_{scratch.parent.name}_first"),
        str(scratch.parent / "dictionary/english_us_arpa.dict"),
        str(bench.model("acoustic/english_us_arpa.zip")),
        str(scratch / "textgrids"),
        "--num_jobs", "2", "--no_tokenization",
        "--g2p_model_path", str(bench.model("acoustic/english_us_arpa.zip")),
        "--beam", "10", "--retry_beam", "40",
    ]  # fmt: skip
    assert scratch.parent.parent == bench.scratch
    assert str(bench.program.parent) in run["environment"]["PATH"].split(os.pathsep)
    assert not {"PYTHONPATH", "PYTHONHOME", "MFA_PROFILE"} & set(run["environment"])
    assert run["corpus"] == {f"{row['speaker_id']}/{row['segment_id']}.lab": row["text"] for row in bench.rows}


def test_mfa_takes_options_that_it_does_not_declare_for_folders_where_they_come_first(bench, monkeypatch):
    """Why the beams are last; also that the stand-in refuses what MFA does not know."""
    monkeypatch.setenv("MFA_ROOT_DIR", str(bench.folder / "other_root"))
    folders = [str(bench.folder), str(bench.model("dictionary/english_us_arpa.dict"))]
    folders += [str(bench.model("acoustic/english_us_arpa.zip")), str(bench.folder / "out")]
    for arguments, said in (
        (["--beam", "10", *folders], "Corpus directory does not exist"),
        ([*folders, "--beams", "10"], "unknown options: --beams 10"),
    ):
        done = subprocess.run([str(bench.program), "align", *arguments], capture_output=True, text=True)
        assert (done.returncode, said in done.stderr) == (2, True)


def test_what_did_not_align_is_tried_once_more_alone_with_wider_beams(bench):
    late, never = bench.ids[2], bench.ids[5:7]
    bench.told(min_beam={late: 100} | dict.fromkeys(never, 1000))
    rows, rejected = bench.align()
    assert list(rows) == [segment_id for segment_id in bench.ids if segment_id not in never]
    assert bench.times_of(rows[late]["words"]) == bench.times[late]
    assert {key: row["reason"] for key, row in rejected.items()} == dict.fromkeys(never, "not_aligned")
    assert "beams 10 and 40, nor with 40 and 160" in rejected[never[0]]["detail"]
    assert [(bench.option(n, "--beam"), bench.option(n, "--retry_beam")) for n in (0, 1)] == [
        ("10", "40"),
        ("40", "160"),
    ]
    assert sorted(Path(lab).stem for lab in bench.runs()[1]["corpus"]) == sorted([late, *never])


def test_an_alignment_to_which_mfa_gives_no_likelihood_is_not_taken(bench):
    bench.told(unlikely=[bench.ids[4]])
    rows, rejected = bench.align()
    assert (list(rows), rejected) == (bench.ids, {})
    assert [Path(lab).stem for lab in bench.runs()[1]["corpus"]] == [bench.ids[4]]


def test_a_shard_of_which_nothing_aligns_is_rejected_segment_by_segment(bench):
    bench.told(min_beam=dict.fromkeys(bench.ids, 1000))
    rows, rejected = bench.align()
    assert (rows, list(rejected)) == ({}, bench.ids)
    with pytest.raises(TooManyRejectedError, match=r"10 of 10 segments.*not_aligned \(10\)"):
        bench.align(limit=0.5)


def test_one_wav_that_mfa_cannot_read_ends_the_shard_with_its_reason(bench, monkeypatch):
    write_corpus = mfa.write_corpus

    def damaged(utterances, folder):
        write_corpus(utterances, folder)
        next(folder.rglob(f"{bench.ids[3]}.wav")).write_bytes(b"RIFF")

    monkeypatch.setattr(mfa, "write_corpus", damaged)
    with pytest.raises(EarmarkError, match=rf"gave no alignment, twice: .*LibsndfileError.*{bench.ids[3]}.*status 1"):
        bench.align()
    assert len(bench.runs()) == 2


def test_what_a_killed_run_wrote_is_used_and_the_rest_is_aligned_again(bench):
    bench.told(die_after=6)
    rows, rejected = bench.align()
    assert (list(rows), rejected) == (bench.ids, {})
    assert len(bench.runs()[1]["corpus"]) == 4


def test_a_command_line_that_mfa_refuses_is_told_at_once(bench, monkeypatch):
    monkeypatch.setattr(mfa, "_corpus", lambda folder: folder / "mfa_corpus")  # begins like MFA_ROOT_DIR
    with pytest.raises(EarmarkError, match=r"was refused: .*outside of MFA's temporary directory.*status 2"):
        bench.align()


def test_two_shards_at_once_do_not_meet_in_one_database(bench):
    bench.told(meet=bench.folder / "meeting")
    halves = [bench.write_corpus(f"{n}.parquet", bench.rows[5 * n : 5 * n + 5]) for n in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda n: bench.align(f"alignments{n}.parquet", halves[n]), (0, 1)))
    assert [segment_id for rows, _ in done for segment_id in rows] == bench.ids


def test_mfa_dies_of_a_second_run_in_the_same_root(bench, monkeypatch):
    """What two shards at once would do if they shared MFA_ROOT_DIR and the name of the corpus folder."""
    monkeypatch.setenv("MFA_ROOT_DIR", str(bench.folder / "other_root"))
    bench.told(meet=bench.folder / "meeting")
    (bench.folder / "corpus").mkdir()
    models = [bench.model("dictionary/english_us_arpa.dict"), bench.model("acoustic/english_us_arpa.zip")]
    arguments = ["corpus", *models, "out"]
    command = [str(bench.program), "align", *map(str, arguments)]
    meeting = bench.folder / "meeting"
    meeting.mkdir()
    first = subprocess.Popen(command, cwd=bench.folder, stderr=subprocess.PIPE, text=True)
    while not any(meeting.iterdir()):  # it has the database
        assert first.poll() is None
        time.sleep(0.01)
    second = subprocess.run(command, cwd=bench.folder, stderr=subprocess.PIPE, text=True)
    (meeting / "release").touch()
    assert "database is locked" in second.stderr
    assert "database is locked" not in first.communicate()[1]


def test_a_word_without_pronunciation_and_its_neighbours_are_not_trusted_unless_g2p_knows_it(bench):
    path = bench.model("dictionary/english_us_arpa.dict")
    segment_id = bench.ids[0]
    words = [word for word, _, _ in bench.times[segment_id]]
    lines = [line for line in path.read_text().splitlines(True) if line.split()[0] != words[3]]
    path.write_text("".join(lines))
    rows, _ = bench.align()
    assert [word["word"] for word in rows[segment_id]["words"]] == words
    expected = [
        not any(words[near] == words[3] for near in range(max(0, n - 1), min(len(words), n + 2)))
        for n in range(len(words))
    ]
    assert [word["trusted"] for word in rows[segment_id]["words"]] == expected
    shutil.copy(bench.model("acoustic/english_us_arpa.zip"), bench.model("g2p/english_us_arpa.zip").parent)
    rows, _ = bench.align(g2p_model="english_us_arpa")
    assert all(word["trusted"] for word in rows[segment_id]["words"])


def test_the_dictionary_is_cut_down_to_the_words_of_the_shard(bench):
    path = bench.model("dictionary/english_us_arpa.dict")
    own = path.read_text()
    path.write_text(own + "zyzzyva\t0.9\tZ IH0 Z\n" * 1000, encoding="utf-8")
    bench.align()
    assert bench.runs()[0]["dictionary"] == own
    assert "zyzzyva" in path.read_text()


def test_dictionary_lines_are_kept_as_they_are_with_all_that_mfa_needs_to_read_the_words_alike(tmp_path):
    kept = [
        "dog D AO1 G",
        "'s\t0.99\t0.13\t1.1\t1.0\tZ",
        "l' L",
        "eau  OW1",
        "The\tDH AH0",
        "the\t0.1\tDH IY0",
        "<unk>\tspn",
        "[laughter]\tspn",
        "Straße\tSH T R AA1 S",
        "o’clock\tAH0 K L AA1 K",
    ]
    dropped = ["cat K AE1 T", "'t T", "strass S", "dogs' D AO1 G Z", "", "broken"]
    source = tmp_path / "source.dict"
    source.write_text("\r\n".join([*dropped, *kept]) + "\n", encoding="utf-8-sig")
    words = {"dog's", "l'eau", "the", "strasse", "o'clock", "qwz"}
    assert write_dictionary(source, words, tmp_path / "target/cut.dict") == {"dog's", "l'eau", "qwz"}
    written = (tmp_path / "target/cut.dict").read_text(encoding="utf-8").splitlines()
    assert written == [line.replace("Straße", "strasse") for line in kept]


def test_a_dictionary_without_any_word_of_the_shard_is_left_whole(tmp_path):
    source = tmp_path / "source.dict"
    source.write_text("cat K AE1 T\n<unk> spn\n")
    assert write_dictionary(source, {"dog"}, tmp_path / "cut.dict") == {"dog"}
    assert (tmp_path / "cut.dict").read_text() == source.read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cat K AE1 T\ndog\n", r":2: 'dog' has no pronunciation"),
        (b"caf\xe9 K AE1\n", r"cannot be read as a UTF-8 pronunciation dictionary"),
    ],
)
def test_a_damaged_dictionary_is_named_with_its_line(tmp_path, content, said):
    (tmp_path / "source.dict").write_bytes(content)
    with pytest.raises(InputError, match=r"source\.dict" + (said if said[0] == ":" else f": {said}")):
        write_dictionary(tmp_path / "source.dict", {"dog", "cat"}, tmp_path / "cut.dict")


def test_possessives_of_known_words_are_trusted(bench):
    """The clitic 's survives the cut, at which MFA divides a word that the dictionary does not list."""
    bench.model("dictionary/english_us_arpa.dict").write_text("dog D AO1 G\n's Z\nruns R AH1 N Z\ncat's K AE1\n")
    row = bench.rows[0] | {"text": "dog's runs"}
    bench.told(times={})
    rows, _ = bench.align(corpus=bench.write_corpus("one.parquet", [row]))
    assert [(word["word"], word["trusted"]) for word in rows[row["segment_id"]]["words"]] == [
        ("dog's", True),
        ("runs", True),
    ]


def test_a_model_that_is_neither_downloaded_nor_a_path_is_told_with_the_command_that_downloads_it(bench):
    for setting, kind, suffix in (
        ("acoustic_model", "acoustic", ".zip"), ("dictionary", "dictionary", ".dict"), ("g2p_model", "g2p", ".zip"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as raised:
            bench.aligner(**{setting: "klingon"})
        assert f"align.mfa.{setting}: 'klingon'" in str(raised.value)
        assert str(bench.root / f"pretrained_models/{kind}/klingon{suffix}") in str(raised.value)
        assert f"`mfa model download {kind} klingon`" in str(raised.value)
    (bench.folder / "speakers.yaml").write_text("default: a.dict")
    with pytest.raises(ConfigError, match=r"a dictionary per speaker is not supported"):
        bench.aligner(dictionary=str(bench.folder / "speakers.yaml"))


def test_models_may_be_given_by_path_relative_to_the_working_folder(bench, monkeypatch):
    monkeypatch.chdir(bench.root / "pretrained_models")
    paths = {"acoustic_model": "acoustic/english_us_arpa.zip", "dictionary": "dictionary/english_us_arpa.dict"}
    rows, _ = bench.align(**paths)
    assert list(rows) == bench.ids


def test_a_program_that_is_not_there_or_does_not_start_is_told_with_what_makes_one(bench, monkeypatch):
    moved = bench.folder / "mfa"
    moved.write_text("#!/gone/bin/python\n")
    for program, said in ((str(bench.folder / "none"), "envs/mfa.yaml"), (str(moved), "envs/mfa.yaml")):
        with pytest.raises(ConfigError, match=said):
            bench.aligner(program=program)
    moved.chmod(0o755)
    with pytest.raises(ConfigError, match=r"cannot be started .*make it anew"):
        bench.aligner(program=str(moved))
    moved.write_text("#!/bin/sh\necho no module named kalpy\nexit 1\n")
    with pytest.raises(EarmarkError, match=r"version` does not work: no module named kalpy \(status 1\)"):
        bench.aligner(program=str(moved))
    monkeypatch.setenv("MFA_STAND_IN_VERSION", "4.0.0")
    with pytest.raises(ConfigError, match=r"is MFA 4\.0\.0"):
        bench.aligner()


def test_an_environment_that_is_not_activated_finds_its_own_programs(bench):
    program = bench.folder / "conda/bin/mfa"
    program.parent.mkdir(parents=True)
    shutil.copy(bench.program, program)
    (program.parent / "fst_compile").write_text("#!/bin/sh\n")
    (program.parent / "fst_compile").chmod(0o755)
    bench.told(needs="fst_compile")
    rows, _ = bench.align(program=str(program))
    assert list(rows) == bench.ids
    with pytest.raises(EarmarkError, match=r"ThirdpartyError: Could not find 'fst_compile'"):
        bench.align()


def test_no_more_jobs_are_asked_for_than_there_are_speakers(bench):
    one = bench.write_corpus(
        "one.parquet", [row for row in bench.rows if row["speaker_id"] == bench.rows[0]["speaker_id"]]
    )
    bench.align(corpus=one, threads=8)
    assert bench.option(0, "--num_jobs") == "1"


def test_kept_textgrids_are_one_tar_that_the_backend_textgrid_reads_to_the_same_words(bench):
    late, never = bench.ids[2], bench.ids[6]
    bench.told(min_beam={late: 100, never: 1000})
    path = bench.model("dictionary/english_us_arpa.dict")
    path.write_text("".join(path.read_text().splitlines(True)[5:]))  # some words are unknown and not trusted
    kept = bench.folder / "kept/shard.tar"
    rows, _ = bench.align(keep_textgrids=kept)
    with tarfile.open(kept) as archive:
        assert archive.getnames() == [f"{segment_id}.TextGrid" for segment_id in bench.ids if segment_id != never]
    assert [path.name for path in kept.parent.iterdir()] == ["shard.tar"]
    shard = bench.folder / "textgrids.parquet"
    pack_textgrids(kept, {"0000": bench.corpus}, {"0000": shard}, bench.folder / "textgrids.json")
    output = bench.folder / "again.parquet"
    aligner = TextGridAligner(shard, offset="auto")
    align_shard(bench.corpus, output, aligner, max_differing_words=0.0, max_rejected_fraction=1.0)
    again = {row["segment_id"]: row for row in iterate_rows(output)}
    assert not all(word["trusted"] for row in rows.values() for word in row["words"])
    assert again == {segment_id: row | {"aligner": "textgrid"} for segment_id, row in rows.items()}


def test_an_empty_shard_needs_no_run(bench):
    corpus = bench.write_corpus("empty.parquet", [])
    assert bench.align(corpus=corpus, keep_textgrids=bench.folder / "shard.tar") == ({}, {})
    assert bench.runs() == []
    with tarfile.open(bench.folder / "shard.tar") as archive:
        assert archive.getnames() == []


def test_audio_that_vanished_after_the_corpus_stage_is_named(bench):
    gone = [bench.rows[0] | {"audio_path": str(bench.folder / "gone.wav")}]
    with pytest.raises(AudioError, match=r"gone\.wav: there is no such file"):
        bench.align(corpus=bench.write_corpus("gone.parquet", gone))
    outside = [bench.rows[0] | {"offset_s": 9999.0}]
    with pytest.raises(AudioError, match=rf"ends before segment {bench.ids[0]} at 9999\.000 s"):
        bench.align(corpus=bench.write_corpus("outside.parquet", outside))


def test_a_missing_scratch_folder_is_told(bench, monkeypatch):
    monkeypatch.setenv("SLURM_TMPDIR", str(bench.folder / "nowhere"))
    with pytest.raises(EarmarkError, match=r"no scratch folder can be made .*SLURM_TMPDIR"):
        bench.aligner()


def alive(process_id):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_of_a_hanging_mfa_is_left_when_our_job_is_ended(bench, number):
    hang = bench.folder / "hang"
    bench.told(hang=hang)
    code = (
        "import sys; from pathlib import Path\n"
        "from earmark.alignment.mfa import MfaAligner\n"
        "from earmark.alignment.shard import align_shard\n"
        f"aligner = MfaAligner({str(bench.program)!r}, 'english_us_arpa', 'english_us_arpa', None, 10, 40, 2, None)\n"
        f"align_shard(Path({str(bench.corpus)!r}), Path({str(bench.folder / 'out.parquet')!r}), aligner,\n"
        "    max_differing_words=0.0, max_rejected_fraction=1.0)\n"
    )
    ours = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        while not (hang.exists() and hang.read_text().count(" ")):
            assert ours.poll() is None
            time.sleep(0.02)
        theirs = [int(word) for word in hang.read_text().split()]
        assert all(map(alive, theirs))
        ours.send_signal(number)
        assert ours.wait(30) != 0
    finally:
        ours.kill()
    for _ in range(500):
        if not any(map(alive, theirs)):
            break
        time.sleep(0.01)
    assert not any(map(alive, theirs))
    assert not (bench.folder / "out.parquet").exists()
