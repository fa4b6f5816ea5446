"""What tests share: where things are, small inputs made on the spot, and a real Snakemake."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

REPO = Path(__file__).resolve().parent.parent
DEMO = REPO / "data/demo"
# They take the fixture `chain`, which takes minutes: pytest-xdist makes it in each process that needs it.
OF_THE_CHAIN = {
    f"tests/workflow/test_{name}.py"
    for name in ("chain", "funasr_nano", "language_model_retriever", "partial_reruns", "speech_llm")
}
_SPEECH = REPO.parent / "shared/speech"
SPEECH = _SPEECH if (_SPEECH / "manifest.tsv").is_file() else None
TALKS = 2  # of each speaker below
SPEAKERS = {"train": ["slt", "heart"], "dev": ["awb"], "test": ["rms"]}

# A shell has what it starts in the background ignore Ctrl-C; programs that the tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("earmark", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("earmark")


class ByFile(LoadScopeScheduling):
    """pytest-xdist's: the tests of a file stay in one process, and so do all files for which the whole chain is run."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "chain" if file in OF_THE_CHAIN else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In several processes the longest comes first, so that none is left alone with it at the end."""

    def place(item: pytest.Item) -> tuple[bool, bool]:
        return item.nodeid.partition("::")[0] not in OF_THE_CHAIN, not item.nodeid.startswith("tests/workflow/")

    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=place)


@dataclass(frozen=True)
class SnakemakeRun:
    """`output` is what the user saw: stdout and stderr in the order they came."""

    status: int
    output: str


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the demo corpus."""
    if not (DEMO / "manifest.tsv").is_file():
        pytest.skip("data/demo holds no manifest")
    return DEMO


@pytest.fixture(scope="session")
def speech() -> Path:
    """A folder of real recordings with transcripts, beside the repository where it is present."""
    if SPEECH is None:
        pytest.skip(f"no real speech at {_SPEECH}")
    return SPEECH


@pytest.fixture(scope="session")
def funasr_python() -> Path:
    """The interpreter of FunASR's environment."""
    python = Path(os.environ.get("EARMARK_FUNASR_PYTHON", REPO / ".venv-funasr/bin/python"))
    if not python.is_file():
        missing = f"{python}: there is no such interpreter; make funasr"
        if os.environ.get("EARMARK_NEEDS_FUNASR") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return python.absolute()


@pytest.fixture(scope="session")
def tiny_fun_asr_nano(funasr_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of a tiny random Fun-ASR-Nano, which no test changes."""
    folder = tmp_path_factory.mktemp("fun_asr_nano") / "tiny"
    script = REPO / "benchmarks/tiny_fun_asr_nano.py"
    command = [sys.executable, str(script), str(folder), "--python", str(funasr_python)]
    subprocess.run([*command, "--hidden-size", "64", "--layers", "1"], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def run_snakemake() -> Callable[..., SnakemakeRun]:
    """Run the workflow as a user does, in a folder of the test's own.

    `configfile`: a path, several, or a mapping that is written to `{directory}/test_config.yaml`. `arguments` are
    further options of Snakemake. A run that outlasts `timeout` seconds is ended with all its jobs and fails the test.
    """

    def run(
        directory: Path,
        *targets: str,
        configfile: Path | list[Path] | dict[str, Any] | None = None,
        timeout: float = 180,
        profile: str = "profiles/local",
        arguments: tuple[str, ...] = (),
    ) -> SnakemakeRun:
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(configfile, dict):
            path = directory / "test_config.yaml"
            path.write_text(yaml.safe_dump(configfile, allow_unicode=True), encoding="utf-8")
            configfile = path
        files = [configfile] if isinstance(configfile, Path) else configfile or []
        command = [sys.executable, "-m", "snakemake", "-s", str(REPO / "Snakefile")]
        command += ["--directory", str(directory), "--profile", str(REPO / profile), *arguments]
        # The targets come before --configfile, which takes every word after it.
        command += [*targets, *(["--configfile", *map(str, files)] if files else [])]
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"snakemake did not end within {timeout} s:\n{output[-4000:]}")
        return SnakemakeRun(process.returncode, output)

    return run


@pytest.fixture(scope="session")
def small_config(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration over a few talks of the demo, trained for two epochs: every stage runs, no figure means much."""
    header, *lines = (demo / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    recording, speaker, text = (columns.index(name) for name in ("recording_id", "speaker", "text"))
    wanted = {name for names in SPEAKERS.values() for name in names}
    talks: dict[str, list[str]] = {}
    for line in lines:
        cells = line.split("\t")
        found = talks.setdefault(cells[speaker], [])
        if cells[speaker] in wanted and cells[recording] not in found and len(found) < TALKS:
            found.append(cells[recording])
    kept = [line for line in lines if line.split("\t")[recording] in talks[line.split("\t")[speaker]]]
    manifest = tmp_path_factory.mktemp("small") / "manifest.tsv"
    manifest.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    # The first is said by training speakers too, and must be kept out of their chunks.
    unseen = ("hypertension", "photosynthesis", "yokohama", "gibraltar", "centrifuge")
    heard = " ".join(line.split("\t")[text] for line in kept)
    return {
        "run": "small",
        "corpus": {"manifest": str(manifest), "audio_root": str(demo), "shards": 2},
        "align": {
            # Scoring is most of an alignment's time; tests/workflow/test_real_speech.py has it.
            "embedded": {"lexicon": str(demo / "lexicon.txt"), "min_quality": None},
            "reference": str(demo / "word_times.parquet"),
        },
        "glossary": {
            "terms": [str(demo / "glossary_filtered.json")],
            "aliases": [str(demo / "alt2main.json")],
        },
        "splits": {
            "test_speakers": SPEAKERS["test"],
            "dev_speakers": SPEAKERS["dev"],
            "unseen_terms": [term for term in unseen if term in heard],
        },
        "train": {"schedule": {"epochs": 2}},
        "evaluate": {"bootstrap_resamples": 20, "distractors": [50]},
    }


@pytest.fixture(scope="session")
def checksums() -> Callable[[Path], dict[str, str]]:
    """checksums(run_folder): of all artifacts but the report, which shows how long jobs took."""

    def of(run_folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(run_folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run_folder.rglob("*"))
            if path.is_file() and path.name not in ("report.html", ".snakemake_timestamp")
        }

    return of


@pytest.fixture
def write_wav(tmp_path: Path) -> Callable[..., Path]:
    """write_wav("a.wav", seconds=1.0, rate=16000, channels=1): a tone, or `samples` as they are."""

    def write(
        name: str,
        *,
        seconds: float = 1.0,
        rate: int = 16_000,
        channels: int = 1,
        samples: np.ndarray | None = None,
        subtype: str = "PCM_16",
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if samples is None:
            tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
            samples = np.stack([tone] * channels, axis=1)
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    return write
