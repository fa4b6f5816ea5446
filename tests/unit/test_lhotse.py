import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.audio import AudioSource, read_audio
from earmark.corpus.readers import lhotse, read_corpus
from earmark.corpus.records import BadEntry, Entry, Segment
from earmark.errors import InputError


def source(path="a.wav", channels=(0,), type="file"):
    return {"type": type, "channels": list(channels), "source": path}


def recording(id="r1", sources=None, **changes):
    return {
        "id": id, "sources": [source()] if sources is None else sources, "sampling_rate": 16000, "num_samples": 160000,
        "duration": 10.0, "channel_ids": [0],
    } | changes  # fmt: skip


def supervision(id="s1", **changes):
    row = {
        "id": id, "recording_id": "r1", "start": 1.5, "duration": 2.0, "channel": 0, "text": "Hello there",
        "language": "English", "speaker": "anna", "gender": "female", "custom": {"snr": 3},
        "alignment": {"word": [["Hello", 0.0, 0.4, 0.9]]},
    } | changes  # fmt: skip
    return {name: value for name, value in row.items() if value is not ...}


def lines(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def write_pair(folder, recordings, supervisions, name="{}.jsonl"):
    folder.mkdir(exist_ok=True)
    for kind, rows in (("recordings", recordings), ("supervisions", supervisions)):
        path = folder / name.format(kind)
        content = lines(rows)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read(folder, recordings, supervisions, name="{}.jsonl"):
    write_pair(folder, recordings, supervisions, name)
    return list(lhotse.read(folder))


def segments(folder):
    return list(read_corpus("lhotse", folder, audio_root=None, columns={}, subset=None, language="en"))


@pytest.mark.parametrize("name", ["{}.jsonl", "{}.jsonl.gz", "corpus_{}_all.jsonl.gz"])
def test_a_supervision_becomes_an_entry(tmp_path, name):
    assert read(tmp_path, [recording()], [supervision()], name) == [
        Entry(
            f"{tmp_path / name.format('supervisions')}:1",
            "s1",
            "a.wav",
            "Hello there",
            "r1",
            "anna",
            "1.5",
            "2.0",
            "English",
        )
    ]


def test_pairs_of_one_folder_are_read_together_each_with_its_own_recordings(tmp_path):
    name = "librispeech_{}_%s.jsonl.gz"
    for part in ("train-clean-100", "dev-clean"):
        write_pair(tmp_path, [recording(sources=[source(f"{part}.flac")])], [supervision(part)], name % part)
    (tmp_path / "librispeech_cuts_dev-clean.jsonl.gz").write_bytes(b"not read")
    entries = list(lhotse.read(tmp_path))
    assert [(entry.segment_id, entry.audio, entry.split) for entry in entries] == [
        ("dev-clean", "dev-clean.flac", "dev-clean"),
        ("train-clean-100", "train-clean-100.flac", "train-clean-100"),
    ]


def test_segments_hold_absolute_paths_and_normalised_text(tmp_path):
    write_pair(tmp_path, [recording()], [supervision(language="GERMAN")])
    [segment] = segments(tmp_path)
    assert isinstance(segment, Segment)
    assert (segment.audio_path, segment.text, segment.offset_s, segment.duration_s, segment.language) == (
        str(tmp_path / "a.wav"), "hello there", 1.5, 2.0, "de",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "channel", "audio", "index"),
    [
        ([source("mono.wav", [0])], 0, "mono.wav", None),
        ([source("mono.wav", [0])], ..., "mono.wav", None),
        ([source("stereo.wav", [0, 1])], 1, "stereo.wav", 1),
        ([source("stereo.wav", [4, 2])], 2, "stereo.wav", 1),
        ([source("stereo.wav", [0, 1])], [1], "stereo.wav", 1),
        ([source("stereo.wav", [0, 1])], [1, 0], "stereo.wav", None),
        ([source("left.wav", [0]), source("right.wav", [1])], 1, "right.wav", None),
        ([source("left.wav", [0]), source("pair.wav", [1, 2])], 2, "pair.wav", 1),
        ([source("left.wav", [0]), source("pair.wav", [1, 2])], [1, 2], "pair.wav", None),
    ],
)
def test_a_channel_names_a_file_and_a_place_in_it(tmp_path, sources, channel, audio, index):
    [entry] = read(tmp_path, [recording(sources=sources)], [supervision(channel=channel)])
    assert (entry.audio, entry.channel) == (audio, index)


@pytest.mark.parametrize(
    ("sources", "channel", "detail"),
    [
        ([source()], 1, "no channel 1"),
        ([source()], [0, 7], "no channel 0, 7"),
        ([source()], [], "no channel"),
        ([], 0, "no channel 0"),
        ([source(channels=[0, 1, 2])], [0, 1], "several channels"),
        ([source("left.wav", [0]), source("right.wav", [1])], [0, 1], "several channels"),
        ([source()], "left", "neither a number"),
        ([source()], True, "neither a number"),
        ([source()], [[0]], "neither a number"),
        ([source()], None, "neither a number"),
    ],
)
def test_channels_that_no_file_has_as_they_are_reject_the_segment(tmp_path, sources, channel, detail):
    [bad] = read(tmp_path, [recording(sources=sources)], [supervision(channel=channel)])
    assert (bad.id, bad.reason) == ("s1", "bad_channel")
    assert bad.detail.startswith(f"{tmp_path}/supervisions.jsonl:1: ")
    assert detail in bad.detail


def test_the_samples_of_the_named_channel_are_what_is_heard(tmp_path, write_wav):
    left = 0.5 * np.sin(np.arange(16000) / 10)
    write_wav("stereo.wav", samples=np.stack([left, -0.5 * left], axis=1))
    rows = [supervision("left", channel=3), supervision("right", channel=5), supervision("both", channel=[3, 5])]
    write_pair(tmp_path, [recording(sources=[source("stereo.wav", [3, 5])])], rows)
    heard = [
        read_audio(AudioSource.of({"audio_path": row.audio_path, "audio_row": row.audio_row, "channel": row.channel}))
        for row in segments(tmp_path)
    ]
    for samples, factor in zip(heard, (1, -0.5, 0.25), strict=True):
        np.testing.assert_allclose(samples, factor * left, atol=1e-4)


def test_a_command_is_rejected_and_never_run(tmp_path):
    trace = tmp_path / "trace"
    rows = [recording(sources=[source(f"touch {trace}; cat a.wav |", type="command")])]
    write_pair(tmp_path, rows, [supervision()])
    [bad] = segments(tmp_path)
    assert (bad.id, bad.reason) == ("s1", "command_pipe")
    assert f"{tmp_path}/supervisions.jsonl:1: " in bad.detail
    assert f"{tmp_path}/recordings.jsonl:1" in bad.detail
    assert not trace.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sources": [source("https://example.org/a.wav", type="url")]}, "remote_audio"),
        ({"sources": [source("UklGRg==", type="memory")]}, "embedded_audio"),
        ({"sources": [source("", type="shar")]}, "embedded_audio"),
        ({"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}, "transformed_audio"),
    ],
)
def test_audio_that_is_not_in_a_file_is_rejected(tmp_path, changes, reason):
    [bad] = read(tmp_path, [recording(**changes)], [supervision()])
    assert (bad.id, bad.reason) == ("s1", reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"id": "r2", "sources": [', "broken_line"),
        ("[]", "broken_line"),
        ('{"id": "r2", "sources": ' + "[" * 5000 + "]" * 5000 + "}", "broken_line"),
        ({"sources": []}, "broken_line"),
        ({"id": {}, "sources": []}, "broken_line"),
        ({"id": "r2"}, "broken_line"),
        (recording("r2", sources=["a.wav"]), "broken_line"),
        (recording("r2", sources=[{"channels": [0], "source": "a.wav"}]), "broken_line"),
        (recording("r2", sources=[source(type="tape")]), "broken_line"),
        (recording("r2", sources=[source(None)]), "broken_line"),
        (recording("r2", sources=[source(channels=["x"])]), "bad_channel"),
        (recording("r\ud800"), "not_utf8"),
        (recording("r1", sources=[source("other.wav")]), "duplicate_id"),
    ],
)
def test_a_bad_recording_is_rejected_with_its_line_and_the_others_are_read(tmp_path, row, reason):
    bad, entry = read(tmp_path, [recording(), row], [supervision()])
    assert bad.reason == reason
    assert bad.detail.startswith(f"{tmp_path}/recordings.jsonl:2: ")
    assert entry.audio == "a.wav"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"id": "s2", "recording_id": "r1", "sta', "broken_line"),
        ("null", "broken_line"),
        (supervision(...), "broken_line"),
        (supervision("s2", recording_id=...), "broken_line"),
        (supervision("s2", recording_id="r9"), "missing_recording"),
        (supervision("s2", recording_id="\n1"), "missing_recording"),
        (supervision("s2", text=...), "no_text"),
        (supervision("s2", text=None), "no_text"),
        (supervision("s2", text=" ?! "), "no_text"),
        (supervision("s2", text=["a"]), "broken_line"),
        (supervision("s2", text="\ud800"), "not_utf8"),
        (supervision("s2", start=...), "broken_line"),
        (supervision("s2", start=-0.5), "bad_time"),
        (supervision("s2", start=float("nan")), "bad_time"),
        (supervision("s2", start=10**400), "bad_time"),
        (supervision("s2", duration=...), "broken_line"),
        (supervision("s2", duration=-2), "bad_time"),
        (supervision("s2", duration=0), "bad_time"),
        (supervision("s2", duration=True), "broken_line"),
        (supervision("s2", speaker={"name": "anna"}), "broken_line"),
        (supervision("../../s2"), "bad_id"),
    ],
)
def test_a_bad_supervision_is_rejected_with_its_line_and_the_others_are_read(tmp_path, row, reason):
    write_pair(tmp_path, [recording()], [row, supervision()], "{}.jsonl.gz")
    bad, good = segments(tmp_path)
    assert isinstance(bad, BadEntry)
    assert bad.reason == reason
    assert bad.detail.startswith(f"{tmp_path}/supervisions.jsonl.gz:1: ")
    assert good.segment_id == "s1"


def test_a_line_that_is_not_utf8_is_rejected(tmp_path):
    write_pair(tmp_path, [recording()], [supervision()])
    with (tmp_path / "supervisions.jsonl").open("ab") as file:
        file.write(lines([supervision("s2", text="Zürich")]).replace(b"\\u00fc", b"\xfc"))
    good, bad = lhotse.read(tmp_path)
    assert good.segment_id == "s1"
    assert (bad.reason, bad.detail[: len(str(tmp_path)) + 22]) == ("not_utf8", f"{tmp_path}/supervisions.jsonl:2:")


@pytest.mark.parametrize("kind", ["recordings", "supervisions"])
def test_a_gzip_file_that_breaks_off_is_refused(tmp_path, kind):
    rows = [supervision(f"s{number}", text=f"word {number * 7919}") for number in range(500)]
    write_pair(tmp_path, [recording(f"r{number}") for number in range(500)], rows, "{}.jsonl.gz")
    path = tmp_path / f"{kind}.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{kind}.jsonl.gz: not a whole gzip file"):
        list(lhotse.read(tmp_path))


@pytest.mark.parametrize("name", ["librispeech_recordings_dev.jsonl.gz", "librispeech_supervisions_dev.jsonl.gz"])
def test_a_manifest_without_its_partner_is_refused(tmp_path, name):
    write_pair(tmp_path, [recording()], [supervision()], "librispeech_{}_train.jsonl.gz")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{name}: there is no (recordings|supervisions) manifest beside it"):
        list(lhotse.read(tmp_path))


def test_two_manifests_that_differ_in_compression_alone_are_refused(tmp_path):
    write_pair(tmp_path, [recording()], [supervision()], "{}.jsonl")
    write_pair(tmp_path, [recording()], [supervision()], "{}.jsonl.gz")
    with pytest.raises(InputError, match=r"holds both recordings.jsonl and recordings.jsonl.gz"):
        list(lhotse.read(tmp_path))


def test_a_folder_without_manifests_or_a_file_is_refused(tmp_path):
    (tmp_path / "recordings.json").write_text("[]")
    with pytest.raises(InputError, match=r"holds no recordings.jsonl.gz and supervisions.jsonl.gz"):
        list(lhotse.read(tmp_path))
    with pytest.raises(InputError, match=r"is a file; set corpus.manifest to the folder"):
        list(lhotse.read(tmp_path / "recordings.json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "channels", "source", "x"]), inner)
    ),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(recording(), JSON) | {"transforms": JSON}),
    st.fixed_dictionaries({}, optional=dict.fromkeys(supervision(), JSON)),
)
def test_any_json_is_read_or_rejected(tmp_path_factory, recording_changes, supervision_changes):
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    write_pair(folder, [recording(**recording_changes)], [supervision() | supervision_changes])
    assert all(isinstance(row, Segment | BadEntry) for row in segments(folder))
