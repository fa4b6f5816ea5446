"""The retrieval stages one after the other, on tones that stand for words and with a tiny random encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_text_model import make_tiny_text_model
from transformers import WhisperConfig, WhisperModel

from earmark.artifacts import CHUNKS, SPLITS, read_table, table_counts, write_json, write_table
from earmark.audio import SAMPLE_RATE, decode_audio, encode_flac
from earmark.errors import EarmarkError, InputError, TooManyRejectedError
from earmark.evaluation.ranked import Settings
from earmark.evaluation.retrieval import Fold, evaluate_retriever
from earmark.files import read_json
from earmark.retrieval.audit import audit_modules
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.features import encode_chunks
from earmark.retrieval.index import build_index, load_index
from earmark.retrieval.model import embed_surfaces, hear, load_retriever
from earmark.retrieval.recipes import AlignmentRecipe, PooledRecipe, Recipe
from earmark.retrieval.term_units import TermUnits
from earmark.retrieval.train import Schedule, train_retriever

TONES_HZ = {"rome": 300, "oslo": 700, "new york": 1500, "lima": 2500}  # lima is never heard in training
SCHEDULE = Schedule(
    epochs=4, patience=4, batch_size=8, learning_rate=0.01, head_lr_factor=1.0, decay="cosine", warmup_ratio=0.1,
    plateau_factor=0.5, plateau_patience=2, weight_decay=0.0,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "alignment": AlignmentRecipe(
        units="letters",
        lexicon={},
        head={"hidden_dim": 16, "blocks": 1, "kernel_size": 3, "dropout": 0.1},
        candidates=10,
        text_weight=1.0,
        term_weight=0.1,
        temperature=1.5,
        max_surfaces=8,
    ),
    "pooled": PooledRecipe(
        embedding_dim=16,
        head={"hidden_dim": 16, "queries": 2, "blocks": 1, "kernel_size": 3, "dropout": 0.1},
        tower={"buckets": 512, "shortest_ngram": 2, "longest_ngram": 3, "hidden_dim": 16, "dropout": 0.1},
        candidates=10,
        text_weight=0.3,
        term_weight=0.7,
        temperature=0.1,
        max_surfaces=8,
        max_phrases=32,
        longest_phrase=2,
    ),
}
TRAINED = {
    "alignment": {"unit_head"},
    "pooled": {"audio_head", "text_tower"},
    "fused": {"audio_head", "text_projection", "spelling_tower"},
}
FROZEN = {"alignment": {"encoder"}, "pooled": {"encoder"}, "fused": {"encoder", "text_model"}}


def tone(term: str | None, seconds: float, random: np.random.Generator) -> np.ndarray:
    clip = 0.02 * random.standard_normal(round(seconds * SAMPLE_RATE))
    if term is not None:
        clip += 0.3 * np.sin(2 * np.pi * TONES_HZ[term] * np.arange(clip.size) / SAMPLE_RATE)
    return clip.astype(np.float32)


class Corpus:
    """Chunks, splits and glossary of a tiny run in `folder`, as the earlier stages would leave them."""

    def __init__(self, folder: Path):
        self.folder, self.encoder = folder, str(folder / "encoder")
        self.chunks, self.features = folder / "chunks.parquet", folder / "features.parquet"
        self.glossary, self.alt2main = folder / "glossary.json", folder / "alt2main.json"
        torch.manual_seed(0)
        WhisperModel(
            WhisperConfig(
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                vocab_size=8,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=3,
            )
        ).save_pretrained(self.encoder)
        text_model = {
            "source": str(make_tiny_text_model(folder / "text_model")),
            "hidden_dim": 16,
            "dropout": 0.1,
        }
        pooled: Any = RECIPES["pooled"]
        fused = replace(pooled, text_model=text_model, lexicon={}, learn_temperature=True)
        self.recipes = RECIPES | {"fused": fused}
        write_json(self.glossary, {term: {"term": term.title(), "aliases": []} for term in TONES_HZ})
        write_json(self.alt2main, {"big apple": "new york"})
        random = np.random.default_rng(0)
        chunks = []
        for split, speaker, repeats in (("train", "ann", 4), ("dev", "bob", 2), ("test", "eve", 2)):
            terms = [*TONES_HZ, None] if split == "test" else ["rome", "oslo", "new york", None]
            rows = [
                self._row(f"{split}-{i}-{n}", speaker, term) for n in range(repeats) for i, term in enumerate(terms)
            ]
            write_table(folder / "splits" / f"{split}.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
            for row in rows:
                clip = tone(row["term"], random.uniform(0.6, 0.9), random)
                chunks.append({**row, "sample_rate": SAMPLE_RATE, "audio": {"bytes": encode_flac(clip), "path": None}})
        write_table(self.chunks, pa.Table.from_pylist(chunks, schema=CHUNKS))

    @staticmethod
    def _row(chunk_id: str, speaker: str, term: str | None) -> dict[str, object]:
        return {
            "chunk_id": chunk_id,
            "speaker_id": speaker,
            "term": term,
            "main_term": term,
            "has_term": term is not None,
            "other_terms": [],
            "seen_term": None if term is None else term != "lima",
            "text": f"we saw {term}" if term else "we saw nothing",
            "duration_s": 1.0 if term else 0.5,
        }

    def encode(self, output: Path, **changes: object) -> None:
        settings = {"layer": -1, "seed": 0, "batch_size": 4, "threads": 1, "max_rejected_fraction": 0.0} | changes
        encode_chunks(self.chunks, output, encoder=self.encoder, **settings)

    def train(self, output: Path, interaction: str, **changes: object) -> None:
        settings = {
            "layer": -1,
            "recipe": self.recipes[interaction],
            "schedule": SCHEDULE,
            "augmentation": FrameAugmentation(crop_frames=1, mask_spans=1, mask_frames=1, noise=0.0),
            "seed": 3,
            "threads": 1,
        } | changes
        splits = self.folder / "splits"
        train_retriever([self.features], splits, self.glossary, self.alt2main, output, encoder=self.encoder, **settings)

    def evaluate(self, features: Path, model: Path, index: Path, output: Path, **changes: Any) -> tuple[Any, list[Any]]:
        """(metrics.json, predictions) of an evaluation into the folder `output`."""
        metrics, predictions = output / "metrics.json", output / "predictions.parquet"
        settings = Settings(
            false_acceptance=0.5, bootstrap_resamples=20, top_k=3, distractors=[], word_list=None, seed=0
        )
        evaluate_retriever(
            model, [features], self.folder / "splits", self.glossary, self.alt2main, index, metrics, predictions,
            settings=settings, candidates=10, threads=1, **changes,
        )  # fmt: skip
        return read_json(metrics), read_table(predictions).to_pylist()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    corpus = Corpus(tmp_path_factory.mktemp("run"))
    corpus.encode(corpus.features)
    return corpus


@pytest.fixture(scope="module", params=["alignment", "pooled", "fused"])
def interaction(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(corpus, interaction) -> Path:
    corpus.train(corpus.folder / "models" / interaction, interaction)
    return corpus.folder / "models" / interaction


@pytest.fixture(scope="module")
def index(corpus, model, interaction) -> Path:
    output = corpus.folder / "index" / interaction
    build_index(model, corpus.glossary, corpus.alt2main, output, kind="flat", threads=1, max_rejected_fraction=0.0)
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*/model.safetensors"))
    assert files
    return {f"{file.parent.name}.{name}": value for file in files for name, value in load_file(file).items()}


def test_features_keep_every_chunk_in_order(corpus):
    assert read_table(corpus.features)["chunk_id"].equals(read_table(corpus.chunks)["chunk_id"])
    assert table_counts(corpus.features)["rejected"] == 0


def test_features_of_given_splits_are_those_of_their_chunks_alone(corpus, tmp_path):
    splits = [corpus.folder / "splits" / f"{split}.parquet" for split in ("dev", "test")]
    corpus.encode(tmp_path / "some.parquet", splits=splits)
    kept = read_table(tmp_path / "some.parquet")["chunk_id"].to_pylist()
    assert sorted(kept) == sorted(row for path in splits for row in read_table(path)["chunk_id"].to_pylist())
    assert 0 < len(kept) < read_table(corpus.chunks).num_rows
    assert table_counts(tmp_path / "some.parquet")["input"] == len(kept)


def test_features_do_not_depend_on_the_batch_size(corpus, tmp_path):
    corpus.encode(tmp_path / "one.parquet", batch_size=1)
    for one, four in zip(
        read_table(tmp_path / "one.parquet")["frames"].to_pylist(),
        read_table(corpus.features)["frames"].to_pylist(),
        strict=True,
    ):
        assert np.allclose(np.frombuffer(one, "<f2"), np.frombuffer(four, "<f2"), atol=2e-3)


def test_unreadable_audio_is_rejected_by_chunk_and_too_much_of_it_fails(corpus, tmp_path):
    rows = read_table(corpus.chunks).to_pylist()[:4]
    rows[1]["audio"] = {"bytes": b"no audio", "path": None}
    broken = Corpus.__new__(Corpus)
    broken.encoder, broken.chunks = corpus.encoder, tmp_path / "chunks.parquet"
    write_table(broken.chunks, pa.Table.from_pylist(rows, schema=CHUNKS))
    broken.encode(tmp_path / "features.parquet", max_rejected_fraction=0.25)
    assert read_table(tmp_path / "features.parquet").num_rows == 3
    rejected = json.loads((tmp_path / "features.rejected.jsonl").read_text())
    assert (rejected["id"], rejected["reason"]) == (rows[1]["chunk_id"], "bad_audio")
    with pytest.raises(TooManyRejectedError):
        broken.encode(tmp_path / "strict.parquet", max_rejected_fraction=0.2)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(corpus, model, interaction, tmp_path):
    corpus.train(tmp_path / "again", interaction)
    corpus.train(tmp_path / "other", interaction, seed=4)
    first, again, other = weights(model), weights(tmp_path / "again"), weights(tmp_path / "other")
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_leaves_the_encoder_as_it_was(corpus, model, interaction):
    source = WhisperModel.from_pretrained(corpus.encoder).encoder.state_dict()
    saved = load_file(model / "audio_0_WhisperFrames" / "model.safetensors")
    assert source.keys() == {name.removeprefix("encoder.") for name in saved}
    assert all(torch.equal(source[name.removeprefix("encoder.")], value) for name, value in saved.items())
    audit = read_json(model / "audit.json")
    assert audit.keys() == FROZEN[interaction] | TRAINED[interaction]
    assert all(audit[part]["trainable"] == 0 < audit[part]["parameters"] for part in FROZEN[interaction])
    assert all(0 < audit[part]["trainable"] == audit[part]["parameters"] for part in TRAINED[interaction])


def test_training_leaves_a_trail_of_losses_and_dev_scores(model):
    lines = [json.loads(line) for line in (model / "train_metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "eval_dev_recall@10" in line] == [1, 2, 3, 4]
    assert any({"term_loss", "text_loss"} <= line.keys() for line in lines)


def test_a_saved_model_loads_in_a_new_process_without_trusting_remote_code_and_scores_the_same(model, tmp_path):
    surfaces = ["rome", "New York", "oslo", "lima", "slow rye"]
    clips = [tone("rome", 0.7, np.random.default_rng(0)), tone("oslo", 1.2, np.random.default_rng(1))]
    np.savez(tmp_path / "clips.npz", *clips)
    soundfile.write(tmp_path / "rome.wav", clips[0], SAMPLE_RATE, subtype="FLOAT")
    code = (
        "import sys, numpy as np\n"
        "from earmark.retrieval.model import TermRetriever\n"
        "model = TermRetriever(sys.argv[1])\n"
        "clips = np.load(sys.argv[2])\n"
        "audio = [clips['arr_0'], {'array': clips['arr_1'], 'sampling_rate': 16000}, 'rome.wav']\n"
        "print(model.score(audio, sys.argv[3:]).tolist())\n"
        "print(model.similarity(model.encode(audio[:1]), model.encode(['New York'])).shape)\n"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "clips.npz"), *surfaces]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    scores, shape = ran.stdout.splitlines()
    here = load_retriever(model).score([*clips, clips[0]], surfaces)
    assert here.shape == (3, 5)
    assert np.ptp(here) > 1e-3
    assert np.allclose(json.loads(scores), here, atol=1e-4)
    assert shape == "torch.Size([1, 1])"


def test_a_surface_scores_as_the_best_of_its_spellings(corpus, model, interaction):
    if interaction != "alignment":
        pytest.skip("a pooled retriever has one vector for a surface")
    retriever, clips = load_retriever(model), [tone("rome", 0.7, np.random.default_rng(0))]
    alone = retriever.score(clips, ["rome", "oslo", "lima"])[0]
    assert retriever.term_units is not None
    units = TermUnits(
        "phonemes", retriever.term_units.inventory, {"xqa": [tuple("rome"), tuple("oslo")], "xqb": ["lima"]}
    )
    retriever[0].sub_modules["text"][0] = units
    both = retriever.score(clips, ["xqb", "xqa"])[0]
    assert both.tolist() == pytest.approx([alone[2], max(alone[:2])], abs=1e-5)


def test_a_model_loads_where_remote_code_is_trusted_too(model):
    assert isinstance(load_retriever(model), SentenceTransformer)
    assert type(SentenceTransformer(str(model), trust_remote_code=True)[0]).__name__ == "Router"


def test_raw_audio_and_its_cached_frames_give_the_same_vector(corpus, model):
    retriever = load_retriever(model)
    row = read_table(corpus.chunks).to_pylist()[0]
    cached = read_table(corpus.features).to_pylist()[0]
    frames = torch.from_numpy(np.frombuffer(cached["frames"], "<f2").astype(np.float32).reshape(1, -1, 16))
    with torch.inference_mode():
        heard = hear(retriever, {"frames": frames, "frame_lengths": torch.tensor([cached["n_frames"]])})
    from_cache = heard["sentence_embedding"][0].cpu().numpy()
    assert np.allclose(retriever.encode([decode_audio(row["audio"]["bytes"])])[0], from_cache, atol=5e-3)


def test_cached_frames_and_surfaces_go_to_wherever_the_model_is(model, interaction):
    if interaction == "fused":
        pytest.skip("a frozen text model is run as batches are made, which no meta device can")
    retriever = load_retriever(model).to("meta")
    heard = hear(retriever, {"frames": torch.zeros(2, 5, 16), "frame_lengths": torch.tensor([5, 3])})
    assert heard["sentence_embedding"].device.type == "meta"
    assert embed_surfaces(retriever, ["rome", "oslo"]).device.type == "meta"


def test_neither_a_vector_nor_a_score_depends_on_batch_mates(model):
    retriever, random = load_retriever(model), np.random.default_rng(0)
    clips = [tone("rome", seconds, random) for seconds in (0.31, 1.2, 0.75)]
    together = retriever.encode(clips, batch_size=3)
    alone = np.concatenate([retriever.encode([clip]) for clip in clips])
    assert np.allclose(together, alone, atol=1e-4)
    together = retriever.score(clips, ["rome", "new york"])
    alone = np.concatenate([retriever.score([clip], ["rome", "new york"]) for clip in clips])
    assert np.allclose(together, alone, atol=1e-3)


def test_nothing_to_train_on_is_an_error_and_leaves_no_model(corpus, tmp_path):
    empty = Corpus.__new__(Corpus)
    vars(empty).update(vars(corpus), folder=tmp_path)
    rows = [row for row in read_table(corpus.folder / "splits/train.parquet").to_pylist() if not row["has_term"]]
    write_table(tmp_path / "splits/train.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
    write_table(tmp_path / "splits/dev.parquet", read_table(corpus.folder / "splits/dev.parquet"))
    with pytest.raises(InputError, match=r"train\.parquet: no chunk with a term"):
        empty.train(tmp_path / "models/none", "alignment")
    assert not list((tmp_path / "models").iterdir())


def test_a_loss_that_explodes_fails_the_run_and_keeps_the_earlier_model(corpus, interaction, tmp_path):
    (tmp_path / "models/kept").mkdir(parents=True)
    (tmp_path / "models/kept/modules.json").write_text("earlier")
    with pytest.raises(EarmarkError, match=r"is nan|not finite"):
        corpus.train(tmp_path / "models/kept", interaction, schedule=replace(SCHEDULE, learning_rate=1e30))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["kept"]
    assert (tmp_path / "models/kept/modules.json").read_text() == "earlier"


def test_training_that_ends_in_a_model_whose_scores_are_not_finite_has_failed(corpus, interaction, tmp_path):
    once = replace(SCHEDULE, epochs=1, learning_rate=1e30)  # in the second of two steps, behind which no loss is seen
    with pytest.raises(EarmarkError, match=r"not finite; .*lower"):
        corpus.train(tmp_path / "models/none", interaction, schedule=once)
    assert not (tmp_path / "models/none").exists()


def test_a_parameter_that_trains_and_must_not_is_refused():
    frozen, half = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).half()
    with pytest.raises(EarmarkError, match="encoder is frozen by design"):
        audit_modules({"encoder": frozen}, trained=set())
    with pytest.raises(EarmarkError, match="less than float32"):
        audit_modules({"head": half}, trained={"head"})


def test_the_index_holds_every_surface_row_for_row_and_scores_as_the_model_does(model, index, interaction):
    loaded, retriever = load_index(index, load_retriever(model)), load_retriever(model)
    assert loaded.surfaces == ("rome", "oslo", "new york", "lima", "big apple")
    assert loaded.main_terms == ("rome", "oslo", "new york", "lima", "new york")
    clips = [tone("oslo", 0.8, np.random.default_rng(0)), tone("rome", 0.6, np.random.default_rng(1))]
    with torch.inference_mode():
        scores = loaded.scores(hear(retriever, retriever.preprocess(clips)), candidates=5)
    assert np.allclose(scores, retriever.score(clips, loaded.surfaces), atol=1e-4)


def test_evaluation_writes_figures_for_each_group_and_every_prediction(corpus, model, index, tmp_path):
    report, rows = corpus.evaluate(corpus.features, model, index, tmp_path)
    assert report["main_terms"] == 4
    assert {name: group["n"] for name, group in report["test"]["retrieval"].items()} == {
        "all": 8,
        "seen": 6,
        "unseen": 2,
    }
    assert report["dev"]["retrieval"]["unseen"] == {"n": 0, "reason": "no such chunk in this split"}
    assert len(rows) == 8 + 10
    for row in rows:
        assert (row["rank"] is not None) == row["has_term"]
        if row["rank"] is not None and row["rank"] <= 3:
            assert row["top_terms"][row["rank"] - 1] == row["main_term"]
    tested = [row for row in rows if row["split"] == "test" and row["has_term"]]
    assert report["test"]["retrieval"]["all"]["recall@1"]["value"] == sum(row["rank"] == 1 for row in tested) / 8
    threshold = report["rejection_threshold"]
    no_term = [row["top_scores"][0] for row in rows if row["split"] == "test" and not row["has_term"]]
    accepted = sum(score > threshold for score in no_term) / len(no_term)
    assert report["test"]["rejection"]["false_acceptance"] == accepted
    assert report["test"]["rejection"]["duration_auroc"] == 1.0
    assert report["test"]["without_features"] == 0


def test_the_threshold_is_set_on_held_out_training_chunks_too_of_each_kind_at_most_so_many(
    corpus, model, index, tmp_path
):
    before, _ = corpus.evaluate(corpus.features, model, index, tmp_path)
    train = read_table(corpus.folder / "splits/train.parquet")
    folds = []
    for fold in range(2):
        part = train.filter(pa.array([number % 2 == fold for number in range(len(train))]))
        write_table(tmp_path / f"{fold}.parquet", part)
        folds.append(Fold(model, index, tmp_path / f"{fold}.parquet"))
    kinds = Counter(train["has_term"].to_pylist())
    for most in (1, 3, 1000):
        after, _ = corpus.evaluate(corpus.features, model, index, tmp_path, folds=folds, held_out_chunks=most)
        for kind, has_term in (("term_chunks", True), ("no_term_chunks", False)):
            assert after["set_on"][kind] == before["set_on"][kind] + min(most, kinds[has_term])
        assert after["test"]["retrieval"] == before["test"]["retrieval"]
    assert kinds[False] > 3 and kinds[True] > 3
    assert after["calibration"] != before["calibration"]


def test_chunks_without_features_are_counted_and_logged(corpus, model, index, tmp_path, caplog):
    encoded = read_table(corpus.features)
    lost = pc.is_in(encoded["chunk_id"], pa.array(["test-0-0", "test-4-0", "test-4-1"]))
    write_table(tmp_path / "features.parquet", encoded.filter(pc.invert(lost)))
    report, rows = corpus.evaluate(tmp_path / "features.parquet", model, index, tmp_path)
    assert (report["dev"]["without_features"], report["test"]["without_features"]) == (0, 3)
    assert len(rows) == 8 + 7
    assert "test.parquet: 3 of 10 chunks have no features" in caplog.text
    assert report["test"]["rejection"]["duration_auroc"] is None  # both no-term chunks are among the lost


def test_a_split_without_features_names_the_setting_that_fills_it(corpus, model, index, tmp_path):
    encoded = read_table(corpus.features)
    write_table(tmp_path / "features.parquet", encoded.filter(pc.starts_with(encoded["chunk_id"], "dev")))
    with pytest.raises(InputError, match=r"splits\.test_speakers"):
        corpus.evaluate(tmp_path / "features.parquet", model, index, tmp_path)


def test_a_dev_split_without_a_seen_term_names_the_setting_that_fills_it(corpus, tmp_path):
    unheard = Corpus.__new__(Corpus)
    vars(unheard).update(vars(corpus), folder=tmp_path)
    rows = [row for row in read_table(corpus.folder / "splits/dev.parquet").to_pylist() if not row["has_term"]]
    write_table(tmp_path / "splits/dev.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
    write_table(tmp_path / "splits/train.parquet", read_table(corpus.folder / "splits/train.parquet"))
    with pytest.raises(InputError, match=r"splits\.dev_speakers"):
        unheard.train(tmp_path / "models/none", "alignment")
