"""The kinds of retriever: what each is made of, what it is fed, and what it is trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from earmark.errors import ConfigError
from earmark.pronunciations import EnglishPronouncer, Phonemes
from earmark.retrieval.alignment_batches import AlignmentBatches
from earmark.retrieval.alignment_loss import AlignmentLoss
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.chunk_frames import ChunkFrames
from earmark.retrieval.encoders import FrozenEncoder
from earmark.retrieval.model import TermRetriever, alignment_retriever, language_model_retriever, pooled_retriever
from earmark.retrieval.pooled_batches import PooledBatches
from earmark.retrieval.pooled_loss import Margin, PooledLoss
from earmark.retrieval.qwen2_audio_frames import Qwen2AudioTowerFrames
from earmark.retrieval.qwen2_language_model import MeanProjection, Qwen2LanguageModel
from earmark.retrieval.qwen2_text_tower import Qwen2TextTower
from earmark.retrieval.split_rows import SplitRow
from earmark.retrieval.term_units import TermUnits
from earmark.retrieval.text_model_tower import TextModelTower
from earmark.retrieval.text_tower import SpellingTower
from earmark.retrieval.unit_head import UnitHead


@dataclass(frozen=True)
class Material:
    """What there is to train on. `surfaces`: surface -> main term."""

    rows: Sequence[SplitRow]
    frames: ChunkFrames
    surfaces: dict[str, str]
    augmentation: FrameAugmentation
    seed: int
    source: str = ""  # what the frozen encoder was loaded from


@dataclass(frozen=True)
class Plan:
    """A retriever ready to be trained: its `parts` by name, of which `trained` are, and all that the trainer needs.

    Of the parts in `partly`, the parameters named there train. `heads` is a pattern of the names of those that learn
    faster (`Schedule.head_lr_factor`); by default the audio route behind its encoder.
    """

    model: TermRetriever
    parts: dict[str, nn.Module]
    trained: set[str]
    batches: AlignmentBatches | PooledBatches
    loss: AlignmentLoss | PooledLoss
    candidates: int
    partly: Mapping[str, Sequence[str]] = field(default_factory=dict)
    heads: str = r"\.sub_modules\.audio\.[1-9]"


class Recipe(Protocol):
    """Makes a plan from a frozen encoder; weights come from torch's seed. `sources` are the further models it loads."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    def __call__(self, encoder: FrozenEncoder, material: Material) -> Plan: ...


@dataclass(frozen=True)
class AlignmentRecipe:
    """See `AlignmentLoss`, `AlignmentBatches`, `UnitHead` (`head`: its sizes) and `TermUnits`."""

    units: str
    lexicon: Mapping[str, Sequence[Phonemes]]
    head: Mapping[str, Any]
    candidates: int
    text_weight: float
    term_weight: float
    temperature: float
    max_surfaces: int

    @property
    def sources(self) -> tuple[str, ...]:
        return ()

    def __call__(self, encoder: FrozenEncoder, material: Material) -> Plan:
        texts = [*material.surfaces, *(row.text for row in material.rows)]
        units = TermUnits.of(self.units, texts, self.lexicon)
        # Half a word cut off would be said to be whole: the transcript of a chunk holds to its ends.
        augmentation = replace(material.augmentation, crop_frames=0)
        batches = AlignmentBatches(
            material.rows, material.frames, material.surfaces, units, augmentation,
            max_surfaces=self.max_surfaces if self.term_weight else 0, seed=material.seed,
        )  # fmt: skip
        head = UnitHead(material.frames.dim, units=len(units.inventory), **self.head)
        model = alignment_retriever(encoder, head, units)
        loss = AlignmentLoss(model, self.text_weight, self.term_weight, self.temperature)
        return Plan(model, {"encoder": encoder, "unit_head": head}, {"unit_head"}, batches, loss, self.candidates)


@dataclass(frozen=True)
class PooledRecipe:
    """See `PooledLoss`, `PooledBatches`, `AudioHead` and `SpellingTower` (`head`, `tower`: their sizes).

    `text_model`: see `TextModelTower.pretrained`; it stands in the tower's place, or where there is a `tower` too, is
    fused with it. `lexicon`: of what knows homophones; None where the language is not English.
    `hard_negatives`: surface -> others, `max_negatives` of them a chunk and step; None where none were mined.
    """

    embedding_dim: int
    head: Mapping[str, Any]
    tower: Mapping[str, Any] | None
    candidates: int
    text_weight: float
    term_weight: float
    temperature: float
    max_surfaces: int
    max_phrases: int
    longest_phrase: int
    no_term: Margin | None = None
    hard_negative: Margin | None = None
    hard_negatives: Mapping[str, Sequence[str]] | None = None
    max_negatives: int = 0
    learn_temperature: bool = False
    text_model: Mapping[str, Any] | None = None
    lexicon: Mapping[str, Sequence[Phonemes]] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.text_model["source"],) if self.text_model else ()

    def __call__(self, encoder: FrozenEncoder, material: Material) -> Plan:
        head = AudioHead(material.frames.dim, embedding_dim=self.embedding_dim, **self.head)
        tower: SpellingTower | TextModelTower
        trained: dict[str, nn.Module] = {"audio_head": head}
        parts: dict[str, nn.Module] = {"encoder": encoder}
        if self.text_model is None:
            assert self.tower is not None
            tower = SpellingTower(embedding_dim=self.embedding_dim, **self.tower)
            trained["text_tower"] = tower
        else:
            tower = TextModelTower.pretrained(embedding_dim=self.embedding_dim, spelling=self.tower, **self.text_model)
            parts["text_model"] = tower.text_model
            trained |= tower.trained_parts()
        model = pooled_retriever(encoder, head, tower)
        batches, loss = self.objective(model, tower, material)
        return Plan(model, parts | trained, set(trained), batches, loss, self.candidates)

    def objective(
        self, model: TermRetriever, tower: SpellingTower | TextModelTower | Qwen2TextTower, material: Material
    ) -> tuple[PooledBatches, PooledLoss]:
        """What the model is fed, and its loss."""
        pronouncer = EnglishPronouncer(self.lexicon) if self.lexicon is not None else None
        batches = PooledBatches(
            material.rows, material.frames, material.surfaces, tower, material.augmentation,
            max_surfaces=self.max_surfaces, max_phrases=self.max_phrases, longest_phrase=self.longest_phrase,
            seed=material.seed, pronouncer=pronouncer, hard_negatives=self.hard_negatives,
            max_negatives=self.max_negatives,
        )  # fmt: skip
        hard_negative = self.hard_negative if self.hard_negatives is not None else None
        loss = PooledLoss(
            model, self.term_weight, self.text_weight, self.temperature, self.no_term, hard_negative,
            self.learn_temperature,
        )  # fmt: skip
        return batches, loss


@dataclass(frozen=True)
class Qwen2AudioRecipe(PooledRecipe):
    """`PooledRecipe` with other towers: both go through Qwen2-Audio's language model.

    See `Qwen2LanguageModel` (`head`: how it trains) and `Qwen2TextTower` (`tower`: its prompt). ConfigError if the
    encoder is not Qwen2-Audio's.
    """

    def __call__(self, encoder: FrozenEncoder, material: Material) -> Plan:
        if not isinstance(encoder, Qwen2AudioTowerFrames):
            raise ConfigError(
                f"retrieval.pooled.towers is qwen2_audio, but retrieval.encoder is {encoder.name}; "
                "give it a Qwen2-Audio, or set towers to spelling"
            )
        assert self.tower is not None
        language_model = Qwen2LanguageModel(material.source, material.seed, **self.head)
        projection = MeanProjection(language_model.hidden_dim, self.embedding_dim)
        tower = Qwen2TextTower.of(language_model, self.embedding_dim, **self.tower)
        model = language_model_retriever(encoder, language_model, projection, tower)
        parts: dict[str, nn.Module] = {
            "encoder": encoder,
            "projector": language_model.base.multi_modal_projector,
            "language_model": language_model.base.language_model,
            "audio_projection": projection,
            "text_projection": tower,
        }
        adapted = [name.removeprefix("language_model.") for name in language_model.trained]
        batches, loss = self.objective(model, tower, material)
        return Plan(
            model, parts, {"audio_projection", "text_projection"}, batches, loss, self.candidates,
            partly={"language_model": adapted}, heads=r"\.sub_modules\.(?:audio\.2|text\.0)\.",
        )  # fmt: skip


_KINDS: dict[str, type[AlignmentRecipe | PooledRecipe]] = {
    "alignment": AlignmentRecipe,
    "pooled": PooledRecipe,
    "qwen2_audio": Qwen2AudioRecipe,
}


def recipe_as_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe of this module as plain values, for another process to read."""
    assert isinstance(recipe, AlignmentRecipe | PooledRecipe)
    (kind,) = (name for name, kind in _KINDS.items() if type(recipe) is kind)
    return {"kind": kind, **asdict(recipe)}


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """The recipe of `recipe_as_json`."""
    fields = dict(values)
    kind = _KINDS[fields.pop("kind")]
    if kind is not AlignmentRecipe:
        for name in ("no_term", "hard_negative"):
            fields[name] = Margin(**fields[name]) if fields[name] else None
    return kind(**fields)


def recipe_of(
    interaction: str,
    settings: Mapping[str, Any],
    lexicon: Mapping[str, Sequence[Phonemes]],
    language: str,
    hard_negatives: Mapping[str, Sequence[str]] | None = None,
    max_negatives: int = 0,
) -> Recipe:
    """The recipe of an `interaction`, alignment or pooled, from its section of the configuration.

    That is without what trains nothing, `index` and `hard_negatives`. `hard_negatives` here (see `hard_negatives`): of
    a pooled retriever, from a round before; `max_negatives` of them a chunk and step. Of a pooled retriever's `towers`,
    the sections of those that are not chosen may be there or not. `language` is the transcripts'.
    """
    settings = dict(settings)
    objective = dict(settings.pop("objective"))
    if interaction == "alignment":
        return AlignmentRecipe(lexicon=lexicon, **settings, **objective)
    sections = {name: settings.pop(name, None) for name in ("audio_head", "text_tower", "text_model", "qwen2_audio")}
    towers, kind = settings.pop("towers"), PooledRecipe
    head = sections["audio_head"]
    tower = sections["text_tower"] if towers in ("spelling", "fused") else None
    text_model = sections["text_model"] if towers in ("text_model", "fused") else None
    if towers == "qwen2_audio":
        kind, head = Qwen2AudioRecipe, dict(sections["qwen2_audio"])
        head["prompt"], tower = head.pop("audio_prompt"), {"prompt": head.pop("text_prompt")}
        settings["embedding_dim"] = head.pop("embedding_dim")
    return kind(
        head=head,
        tower=tower,
        text_model=text_model,
        lexicon=lexicon if language.split("-")[0] == "en" else None,
        max_negatives=max_negatives,
        no_term=Margin(objective.pop("no_term_margin"), objective.pop("no_term_weight")),
        hard_negative=Margin(objective.pop("hard_negative_margin"), objective.pop("hard_negative_weight")),
        hard_negatives=hard_negatives,
        **settings,
        **objective,
    )
