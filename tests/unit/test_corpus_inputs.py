import pytest

from earmark.corpus.inputs import input_files


@pytest.mark.parametrize(
    ("format", "files", "read"),
    [
        ("kaldi", ["text", "wav.scp", "utt2dur", "a.wav"], ["wav.scp", "text"]),
        ("lhotse", ["recordings.jsonl.gz", "x.jsonl", "x.flac"], ["recordings.jsonl.gz", "x.jsonl"]),
        ("librispeech", ["1/2/1-2.trans.txt", "1/2/1-2-0000.flac"], ["1/2/1-2.trans.txt"]),
        ("huggingface", ["a/0.arrow", "a/state.json", "b.parquet", "x.md"], ["b.parquet", "a/0.arrow", "a/state.json"]),
    ],
)  # fmt: skip
def test_what_is_read_in_a_folder_is_an_input_and_audio_is_not(tmp_path, format, files, read):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert set(input_files(format, tmp_path)) == {tmp_path / name for name in read}


def test_a_file_or_an_empty_or_missing_folder_stands_for_itself(tmp_path):
    for path in (tmp_path / "a.tsv", tmp_path):
        assert input_files("kaldi", path) == [path]
