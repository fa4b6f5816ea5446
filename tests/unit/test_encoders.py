"""The choice of the frozen encoder: what a source names, and Qwen2-Audio's audio tower through all stages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from test_retrieval_stages import SCHEDULE, TRAINED, Corpus
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Wav2Vec2Config,
    WhisperConfig,
    WhisperModel,
)

from earmark.artifacts import CHUNKS, read_table, write_table
from earmark.audio import SAMPLE_RATE, decode_audio, encode_flac
from earmark.errors import ConfigError, InputError
from earmark.files import read_json
from earmark.retrieval.encoders import load_frozen_encoder
from earmark.retrieval.index import build_index
from earmark.retrieval.model import hear, load_retriever
from earmark.retrieval.qwen2_audio_frames import Qwen2AudioTowerFrames
from earmark.retrieval.whisper_frames import WhisperFrames

AUDIO = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
TEXT = {
    "model_type": "qwen2",
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}
INTERACTIONS = ["alignment", "pooled"]


@pytest.fixture(autouse=True, scope="module")
def without_gpu() -> None:
    """Encoding takes a GPU where it finds one, and bfloat16 with it; the comparisons are in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


def qwen2_audio(folder: Path) -> Path:
    """A model folder of a tiny Qwen2-Audio, whose weights are in float32: more than the tower keeps of them."""
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(audio_config=AUDIO, text_config=TEXT, audio_token_index=31)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def whisper(folder: Path) -> Path:
    torch.manual_seed(0)
    config = WhisperConfig(
        **AUDIO, decoder_layers=1, decoder_attention_heads=2, vocab_size=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    return folder


class Run(Corpus):
    """All stages on the toy corpus with one encoder; what it was loaded from is gone afterwards."""

    def __init__(self, folder: Path, prefix: str, interactions: list[str]):
        super().__init__(folder)
        base = qwen2_audio(folder / "qwen2-audio")
        self.encoder = f"{prefix}{base}"
        self.tower = load_file(base / "model.safetensors")
        self.encode(self.features)
        self.reports = {}
        for interaction in interactions:
            model, index = folder / "models" / interaction, folder / "index" / interaction
            self.train(model, interaction, schedule=replace(SCHEDULE, epochs=2), seed=0)
            build_index(model, self.glossary, self.alt2main, index, kind="flat", threads=1, max_rejected_fraction=0.0)
            self.reports[interaction] = self.evaluate(self.features, model, index, folder / interaction)
        base.rename(folder / "moved")

    def saved_encoder(self, interaction: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "models" / interaction / "audio_0_Qwen2AudioTowerFrames/model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), "", INTERACTIONS)


@pytest.fixture(scope="module")
def control(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("control"), "random:", ["alignment"])


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_qwen2_audio_goes_through_every_stage(run, interaction):
    report, rows = run.reports[interaction]
    assert {name: group["n"] for name, group in report["test"]["retrieval"].items()} == {
        "all": 8,
        "seen": 6,
        "unseen": 2,
    }
    assert len(rows) == 8 + 10 and report["test"]["without_features"] == 0
    audit = read_json(run.folder / "models" / interaction / "audit.json")
    assert audit.keys() == {"encoder"} | TRAINED[interaction] and audit["encoder"]["trainable"] == 0


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_the_model_holds_the_audio_tower_in_bfloat16_and_nothing_else_of_the_base(run, interaction):
    tower = {
        name.partition("audio_tower.")[2]: weight.bfloat16()
        for name, weight in run.tower.items()
        if "audio_tower." in name
    }
    saved = {name.removeprefix("encoder."): weight for name, weight in run.saved_encoder(interaction).items()}
    assert saved.keys() == tower.keys() and len(tower) > 20
    assert all(torch.equal(saved[name], weight) and weight.dtype == torch.bfloat16 for name, weight in tower.items())


@pytest.mark.parametrize(("name", "interaction"), [("run", "alignment"), ("run", "pooled"), ("control", "alignment")])
def test_raw_audio_and_cached_frames_are_heard_alike_without_the_base(request, name, interaction):
    run = request.getfixturevalue(name)
    retriever = load_retriever(run.folder / "models" / interaction)
    with pytest.raises(ConfigError, match=r"hears in float32; only Whisper's encoder can hear in int8"):
        retriever.encoder_precision = "int8"
    assert retriever.encoder_precision == "float32"
    cached = read_table(run.features).to_pylist()
    for row, encoded in zip(read_table(run.chunks).to_pylist()[:5], cached, strict=False):
        frames = np.frombuffer(encoded["frames"], "<f2").astype(np.float32).reshape(1, encoded["n_frames"], 16)
        with torch.inference_mode():
            raw = hear(retriever, retriever.preprocess([decode_audio(row["audio"]["bytes"])], modality="audio"))
            again = hear(
                retriever,
                {"frames": torch.from_numpy(frames), "frame_lengths": torch.tensor([encoded["n_frames"]])},
            )
        assert torch.allclose(raw["frames"], again["frames"], atol=2e-3)  # float16 keeps so much of numbers up to 4
        for output in ("sentence_embedding", *(["unit_log_probs"] if interaction == "alignment" else [])):
            assert torch.allclose(raw[output], again[output], atol=5e-3)


def test_copies_of_the_models_score_in_a_new_process(run, tmp_path):
    shutil.copytree(run.folder / "models", tmp_path / "models")
    clip = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    np.save(tmp_path / "clip.npy", clip)
    code = (
        "import json, sys, numpy as np\n"
        "from earmark.retrieval.model import TermRetriever\n"
        "models = [TermRetriever(path, device='cpu') for path in sys.argv[2:]]\n"
        "print(json.dumps([model.score([np.load(sys.argv[1])], ['rome', 'lima']).tolist() for model in models]))\n"
    )
    copies = [str(tmp_path / "models" / interaction) for interaction in INTERACTIONS]
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "clip.npy"), *copies], capture_output=True, text=True, check=True
    )
    for there, interaction in zip(json.loads(ran.stdout), INTERACTIONS, strict=True):
        here = load_retriever(run.folder / "models" / interaction).score([clip], ["rome", "lima"])
        assert np.allclose(there, here, atol=1e-5)


def test_the_control_has_the_towers_shape_and_weights_of_the_seed(run, control):
    drawn, learnt = control.saved_encoder("alignment"), run.saved_encoder("alignment")
    assert {name: weight.shape for name, weight in drawn.items()} == {name: w.shape for name, w in learnt.items()}
    source = f"random:{control.folder / 'moved'}"
    again, other = (load_frozen_encoder(source, seed).state_dict() for seed in (0, 1))  # training's seed, and another
    assert all(torch.equal(weight.float(), again[name]) for name, weight in drawn.items())
    name = "encoder.layers.1.fc2.weight"
    assert not torch.equal(drawn[name], learnt[name]) and not torch.equal(again[name], other[name])


def test_a_chunk_too_short_for_a_frame_is_rejected_and_the_others_are_kept(run, tmp_path):
    rows = read_table(run.chunks).to_pylist()[:3]
    rows[1]["audio"] = {"bytes": encode_flac(np.full(320, 0.1, np.float32)), "path": None}
    short = Run.__new__(Run)
    short.encoder, short.chunks = str(run.folder / "moved"), tmp_path / "chunks.parquet"
    write_table(short.chunks, pa.Table.from_pylist(rows, schema=CHUNKS))
    short.encode(tmp_path / "features.parquet", max_rejected_fraction=0.5)
    kept = read_table(tmp_path / "features.parquet")["chunk_id"].to_pylist()
    assert kept == [rows[0]["chunk_id"], rows[2]["chunk_id"]]
    rejected = json.loads((tmp_path / "features.rejected.jsonl").read_text())
    assert rejected["id"] == rows[1]["chunk_id"] and "0.020 s is too short for one frame" in rejected["detail"]


def test_a_models_own_configuration_says_which_encoder_it_is(tmp_path):
    qwen, other = qwen2_audio(tmp_path / "a:b"), whisper(tmp_path / "c:d")
    for prefix in ("", "random:"):
        assert isinstance(load_frozen_encoder(f"{prefix}{qwen}", 0), Qwen2AudioTowerFrames)
        encoder = load_frozen_encoder(f"{prefix}{other}", 0, -2)
        assert isinstance(encoder, WhisperFrames) and encoder.layer == 1
        [frames] = encoder.encode([np.full(SAMPLE_RATE, 0.1, np.float32)])
        assert frames.shape == (25, encoder.frame_dim) == (25, 16)
    assert load_frozen_encoder("bundled:whisper-tiny.en", 0).frame_dim == 384
    assert load_frozen_encoder("random:whisper-tiny.en", 0).frame_dim == 384


def test_other_models_are_refused_with_what_there_is(tmp_path):
    Wav2Vec2Config().save_pretrained(tmp_path / "wav2vec2")
    for source in (str(tmp_path / "wav2vec2"), f"random:{tmp_path / 'wav2vec2'}"):
        with pytest.raises(ConfigError, match=r"type 'wav2vec2'; .*whisper.*qwen2_audio"):
            load_frozen_encoder(source, 0)
    (tmp_path / "code").mkdir()
    code = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "code/config.json").write_text(json.dumps(code))
    (tmp_path / "code/own.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(ConfigError, match="type 'own'"):
        load_frozen_encoder(str(tmp_path / "code"), 0)
    with pytest.raises(ConfigError, match=r"nowhere.*bundled:whisper-tiny\.en"):
        load_frozen_encoder(str(tmp_path / "nowhere"), 0)
    with pytest.raises(ConfigError, match="whisper-huge"):
        load_frozen_encoder("bundled:whisper-huge", 0)


@pytest.mark.parametrize("layer", [1, 2, -2])
def test_layers_are_chosen_of_whisper_only(tmp_path, layer):
    with pytest.raises(ConfigError, match=rf"retrieval\.layer to -1, not {layer}"):
        load_frozen_encoder(str(qwen2_audio(tmp_path)), 0, layer)


def test_features_of_another_width_are_refused_by_training(run, tmp_path):
    wide = Run.__new__(Run)
    vars(wide).update(vars(run), encoder="bundled:whisper-tiny.en")
    with pytest.raises(InputError, match=r"frames are 16 wide, bundled:whisper-tiny\.en gives 384"):
        wide.train(tmp_path / "model", "alignment")
