"""What the doctor says of configurations and machines that are not well."""

import copy
import importlib.util
import os
import shutil
import stat

import pytest
import yaml

from earmark.cluster import machine_checks, run_checks
from earmark.cluster.doctor import Verdict, examine
from earmark.errors import ConfigError

CLUSTER = {"cpu_partition": "cpu", "gpu_partition": "gpu", "gpu_gres": "gpu:1", "account": None}


@pytest.fixture(scope="session")
def defaults(repo):
    return run_checks.merged_config(repo, [])


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program("sinfo", "echo cpu"): the only program of this name on PATH."""

    def make(name, script):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    return make


def problems(findings):
    return [finding.text for finding in findings if finding.verdict is Verdict.PROBLEM]


def test_config_files_override_key_by_key_the_later_the_stronger(tmp_path, repo, defaults):
    for name, text in (("a.yaml", "corpus: {shards: 7, language: de}"), ("b.yaml", "corpus: {shards: 9}")):
        (tmp_path / name).write_text(text)
    merged = run_checks.merged_config(repo, [tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert merged["corpus"] == {**defaults["corpus"], "shards": 9, "language": "de"}


def test_a_misspelt_key_ends_the_examination_with_its_neighbour(tmp_path, repo, capsys):
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"corpus": {"shard": 3}}))
    assert not examine(repo, [tmp_path / "my.yaml"])
    said = capsys.readouterr().out
    assert "did you mean 'corpus.shards'" in said
    assert "training" not in said
    (tmp_path / "my.yaml").write_text("corpus: [")
    with pytest.raises(ConfigError, match="not YAML"):
        run_checks.merged_config(repo, [tmp_path / "my.yaml"])


def test_only_the_aligner_that_is_set_is_examined(defaults, tmp_path):
    config = copy.deepcopy(defaults)
    assert not problems(run_checks.aligner(config))
    config["align"]["backend"] = "mfa"
    config["align"]["mfa"]["program"] = str(tmp_path / "no/mfa")
    assert "no program on PATH" in problems(run_checks.aligner(config))[0]
    config["align"]["backend"] = "textgrid"
    assert problems(run_checks.aligner(config)) == ["align.backend is textgrid without a path"]
    config["chunks"]["from_file"] = ["chunks.json"]
    assert not list(run_checks.aligner(config))


def test_missing_and_broken_audio_is_a_problem_with_its_path(defaults, tmp_path, write_wav):
    config = copy.deepcopy(defaults)
    write_wav("good.wav")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    manifest = tmp_path / "m.tsv"
    manifest.write_text("segment_id\taudio\ttext\n1\tgood.wav\thi\n2\tbroken.wav\thi\n3\tgone.wav\thi\n")
    config["corpus"].update(manifest=str(manifest))
    found = problems(run_checks.audio(config))
    assert len(found) == 2
    assert "broken.wav" in found[0]
    assert "gone.wav" in found[1]
    config["corpus"].update(manifest=str(tmp_path / "none.tsv"))
    assert "none.tsv" in problems(run_checks.audio(config))[0]


def test_a_model_that_is_nowhere_is_a_problem(defaults, tmp_path, monkeypatch):
    config = copy.deepcopy(defaults)
    assert not problems(run_checks.models(config))
    config["retrieval"]["encoder"] = str(tmp_path)
    assert "holds no config.json" in problems(run_checks.models(config))[0]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    config["retrieval"]["encoder"] = "openai/whisper-that-nobody-has"
    assert "in no cache, and the hub cannot be reached" in problems(run_checks.models(config))[0]
    config["retrieval"]["encoder"] = "no such/folder/at all"
    assert "neither a folder nor a hub id" in problems(run_checks.models(config))[0]


def test_models_that_the_package_does_not_bundle_and_those_of_a_language_model_are_looked_at(defaults, tmp_path):
    config = copy.deepcopy(defaults)
    config["retrieval"]["encoder"] = "bundled:whisper-large"
    config["evaluate"]["transcripts"] = "bundled:qwen"
    config["speech_llm"] |= {"qwen3_model": str(tmp_path / "gone"), "load_in_4bit": True}
    said = problems(run_checks.models(config))
    assert ["retrieval.encoder: no bundled model" in said[0], "evaluate.transcripts: no bundled" in said[1]] == [
        True
    ] * 2
    assert len(said) == 2
    config["train"]["backends"] = ["retriever", "whisper_qwen3"]
    said = "\n".join(problems(run_checks.models(config)))
    assert f"speech_llm.qwen3_model: {tmp_path / 'gone'} is neither a folder nor a hub id" in said
    assert "speech_llm.whisper_model" not in said
    assert ("load_in_4bit needs" in said) == (importlib.util.find_spec("bitsandbytes") is None)


def test_a_missing_word_list_or_reference_is_a_problem(defaults, tmp_path):
    config = copy.deepcopy(defaults)
    assert not problems(run_checks.word_list(config))
    config["evaluate"]["word_list"] = config["align"]["reference"] = str(tmp_path / "gone")
    assert "gone: there is no such file" in problems(run_checks.word_list(config))[0]
    assert "gone: there is no such file" in problems(run_checks.aligner(config))[0]


def test_partitions_and_gpus_are_compared_with_what_sinfo_prints(program):
    # As Slurm 22.05 printed it; a node's GPUs may come with the sockets they belong to.
    program("sinfo", "echo 'cpu|up|(null)|3'; echo 'gpu|up|gpu:h100:2(S:0-1)|2'")
    assert not problems(machine_checks.slurm({**CLUSTER, "gpu_gres": "gpu:h100:1"}))
    assert not problems(machine_checks.slurm(CLUSTER))
    assert not problems(machine_checks.slurm({**CLUSTER, "cpu_partition": None, "gpu_partition": None}))
    assert problems(machine_checks.slurm({**CLUSTER, "cpu_partition": "batch"})) == [
        "cluster.cpu_partition: there is no partition 'batch'"
    ]
    assert not problems(machine_checks.slurm({**CLUSTER, "gpu_gres": "gpu:h100:1"}, processes=2))
    for gres, processes in (("gpu:1", 3), ("gpu:h100:2", 2)):
        assert (
            "no node of gpu has more than 2"
            in problems(machine_checks.slurm({**CLUSTER, "gpu_gres": gres}, processes))[0]
        )
    assert "has no 'gpu:a100:1'" in problems(machine_checks.slurm({**CLUSTER, "gpu_gres": "gpu:a100:1"}))[0]
    assert "has no 'gpu:1'" in problems(machine_checks.slurm({**CLUSTER, "gpu_partition": "cpu"}))[0]


def test_a_machine_without_slurm_is_well(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("sinfo") is None
    assert [finding.verdict for finding in machine_checks.slurm(CLUSTER)] == [Verdict.OK]


def test_a_quota_that_is_used_up_is_a_problem(program, tmp_path):
    program("quota", "echo 'Over file quota on /scratch'; exit 1")
    assert problems(machine_checks.disk(tmp_path)) == ["Over file quota on /scratch"]


def test_a_missing_package_is_a_problem_and_another_version_a_warning(monkeypatch):
    real = machine_checks.metadata.version
    versions = {"pyarrow": "1.0"}

    def version(name):
        if name == "soxr":
            raise machine_checks.metadata.PackageNotFoundError
        return versions.get(name) or real(name)

    monkeypatch.setattr(machine_checks.metadata, "version", version)
    found = list(machine_checks.packages())
    assert problems(found) == ["soxr is not installed"]
    assert any(finding.verdict is Verdict.WARNING and "pyarrow is 1.0" in finding.text for finding in found)


def test_training_on_several_nodes_wants_slurm_and_a_partition_that_has_them(program, monkeypatch, tmp_path):
    program("srun", "")
    program("sinfo", "echo 'cpu|up|(null)|3'; echo 'gpu|up|gpu:2|2'")
    assert not problems(machine_checks.slurm(CLUSTER, nodes=2))
    assert problems(machine_checks.slurm(CLUSTER, nodes=3)) == [
        "a training job asks for 3 nodes (train.nodes), and partition gpu has 2"
    ]
    assert not problems(machine_checks.slurm({**CLUSTER, "gpu_partition": None}, nodes=3))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no Slurm on this machine" in problems(machine_checks.slurm(CLUSTER, nodes=2))[0]


LFS = """Disk quotas for usr ann (uid 1000):
      Filesystem    used   quota   limit   grace   files   quota   limit   grace
{row}
uid 1000 is using default file quota setting
"""


@pytest.fixture
def on_lustre(program, monkeypatch, tmp_path):
    """on_lustre(row): what is found about quotas where `lfs quota` prints that row."""

    def examine_row(row):
        part = type("Partition", (), {"mountpoint": str(tmp_path), "fstype": "lustre"})
        monkeypatch.setattr("psutil.disk_partitions", lambda **_: [part])
        asked = f'[ "$1 $2" = "quota -hu" ] && [ "$4" = {tmp_path} ] || exit 1'
        program("lfs", f"{asked}\ncat <<END\n{LFS.format(row=row)}END")
        found = machine_checks.disk(tmp_path / "data")
        return [finding for finding in found if finding.subject == "quota" and str(tmp_path) in finding.text]

    return examine_row


@pytest.mark.parametrize(
    ("row", "verdicts"),
    [
        ("/scratch2  512G  1T  1.1T  -  12345  1000000  1100000  -", ["ok", "ok"]),
        ("/a/long/name/of/a/file/system\n     1.2k   0k   0k   -   12  0  0  -", ["ok", "ok"]),
        ("/scratch 1.05T* 1T 1.1T 6d23h4m 999000 1000000 1100000 -", ["warning", "warning"]),
        ("/scratch 1.05T* 1T 1.1T expired 1100000* 1000000 1100000 6d", ["problem", "problem"]),
        ("/scratch [1073741824] 0 1073741900 - [1.2M] 0 2M -", ["problem", "ok"]),
    ],
)
def test_lustres_quotas_of_room_and_of_files_are_read(on_lustre, row, verdicts):
    assert [finding.verdict for finding in on_lustre(row)] == verdicts


def test_an_lfs_that_says_something_else_is_told_and_without_lustre_nobody_asks(on_lustre, monkeypatch, tmp_path):
    (said,) = on_lustre("Permission denied.")
    assert (said.verdict, "lfs quota -hu" in said.text) == ("warning", True)
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: [])
    assert not [finding for finding in machine_checks.disk(tmp_path) if "lfs quota" in finding.text]


def test_funasr_is_looked_for_where_it_is_used_alone(defaults, program, tmp_path):
    config = copy.deepcopy(defaults)
    (unused,) = run_checks.funasr(config)
    assert (unused.verdict, unused.text) == ("ok", "not used: train.backends does not name funasr_nano")
    config["train"]["backends"] = ["retriever", "funasr_nano"]
    config["funasr_nano"] = {"python": str(tmp_path / "bin/python")}
    assert "there is no interpreter" in problems(run_checks.funasr(config))[0]
    for script, said in [
        ("echo loading; echo VERSION 1.4.16", None),
        ("echo VERSION 1.3.9", "has funasr 1.3.9, which ignores LoRA"),
        ("echo \"ModuleNotFoundError: No module named 'funasr'\" >&2; exit 1", "cannot import funasr: ModuleNotFound"),
    ]:
        program("python", script)
        found = problems(run_checks.funasr(config))
        assert bool(found) == (said is not None)
        assert not found or said in found[0]


def test_a_device_is_made_to_multiply():
    assert machine_checks.computes("cpu", "the CPU").verdict is Verdict.OK
    gone = machine_checks.computes("cuda:77", "a GPU")
    assert "a product of two small matrices fails" in gone.text


def test_a_device_that_multiplies_wrongly_is_a_problem(monkeypatch):
    import torch

    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda product: real(product) + 1)
    assert "multiplies matrices wrongly" in machine_checks.computes("cpu", "a GPU").text
