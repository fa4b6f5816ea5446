"""The command `earmark`: one function that states a subcommand's options, one that runs it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from earmark.artifacts import read_table
from earmark.audio import audio_info
from earmark.cluster.commands import add_commands as add_watching
from earmark.errors import EarmarkError, InputError
from earmark.export.convert import convert
from earmark.export.formats import FORMATS
from earmark.export.tokenizer import BUNDLED
from earmark.files import read_json, read_text
from earmark.funasr_nano.commands import add_commands as add_funasr
from earmark.glossary.filters import TermFilters
from earmark.glossary.merge import merge_glossary
from earmark.report.figures import print_figures
from earmark.text import normalise

if TYPE_CHECKING:
    from earmark.retrieval.search import Hit


def _add_figures(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("figures", help="print what a finished run reached and where its report is")
    parser.add_argument("run_folder", type=Path, help="the run's folder, for instance data/demo")
    parser.set_defaults(command=lambda arguments: print_figures(arguments.run_folder))


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("convert", help="write a list of audio and text in a training format")
    parser.add_argument("--input", type=Path, required=True, help='JSON lines of {"key", "wav", "txt"}')
    parser.add_argument("--output", type=Path, required=True, help="the JSON lines to write")
    parser.add_argument("--format", choices=list(FORMATS), default="funasr_nano", help="default: %(default)s")
    parser.add_argument(
        "--calculate-lengths", action=argparse.BooleanOptionalAction, default=True,
        help="add the lengths of audio and text that the FunASR formats hold (default: yes)",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", default=BUNDLED, help="counts funasr_nano's text_length: %(default)s, a model folder or a hub id"
    )
    parser.add_argument("--prompt", default="Transcribe the speech.", help="what conversation and flat ask for")
    parser.add_argument("--audio-root", type=Path, help="where relative paths start; default: the input's folder")
    parser.add_argument("--max-rejected-fraction", type=float, default=0.1, help="default: %(default)s")
    parser.set_defaults(
        command=lambda arguments: convert(
            arguments.input, arguments.output, format=arguments.format, calculate_lengths=arguments.calculate_lengths,
            tokenizer=arguments.tokenizer, prompt=arguments.prompt, audio_root=arguments.audio_root,
            max_rejected_fraction=arguments.max_rejected_fraction,
        )
    )  # fmt: skip


def _add_search(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "search",
        help="find the glossary's terms in a recording",
        description="Find the terms of a trained run's glossary in a recording of any length: a line for each time one "
        "is heard with a score over the threshold. For a clip no longer than the longest window, the terms that came "
        "nearest are shown too.",
    )
    parser.add_argument("audio", type=Path, metavar="AUDIO", help="an audio file")
    _add_run(parser)
    parser.add_argument(
        "-k",
        type=int,
        default=10,
        help="most terms: shown for a clip, counted in a window of a recording (default: 10)",
    )
    parser.add_argument("--threshold", type=float, help="lowest score of a hit, exclusive; default: the run's own")
    parser.add_argument(
        "--windows", type=float, nargs="+", default=(2.0, 4.0), metavar="SECONDS",
        help="lengths of the sliding windows (default: 2 4, about those of the training chunks)",
    )  # fmt: skip
    parser.add_argument(
        "--encoder-precision", choices=["float32", "int8"], default="float32",
        help="int8: Whisper's matrix products of 8-bit integers, 60 %% of the encoder's time on a CPU with AVX-512 "
        "VNNI (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="JSON lines: an object for each hit with term, surface, start_s, end_s, score and probability (null where "
        "the run was not calibrated); nothing where there is none",
    )  # fmt: skip
    parser.set_defaults(command=_search)


def _search(arguments: argparse.Namespace) -> None:
    # Imported here: it needs torch, which takes seconds to load and which other commands do without.
    from earmark.retrieval.search import TermSearch

    duration_s = audio_info(arguments.audio).duration_s
    terms = TermSearch(_run_folder(arguments.run), arguments.backend, arguments.encoder_precision)
    threshold = terms.threshold() if arguments.threshold is None else arguments.threshold
    asked = {"k": arguments.k, "windows_s": arguments.windows}
    hits = terms.hits(arguments.audio, threshold=threshold, **asked)
    ranking = terms.ranking(arguments.audio, **asked) if duration_s <= max(arguments.windows) else []
    if arguments.json:
        for hit in hits:
            print(_json_line(hit))
    elif ranking:
        heard = {hit.term for hit in hits}
        shown = [*hits, *(hit for hit in ranking if hit.term not in heard)]
        shown = sorted(shown, key=lambda hit: -hit.score)[: arguments.k]
        _print_table(shown, [_mark(hit, heard, threshold) for hit in shown])
    elif hits:
        _print_table(hits, [""] * len(hits))
    if not hits:
        nearest = f"; the nearest is {ranking[0].term!r} with {ranking[0].score:.2f}" if ranking else ""
        print(f"none: no term scores over {threshold:.2f}{nearest}", file=sys.stderr if arguments.json else sys.stdout)


def _mark(hit: Hit, heard: set[str], threshold: float) -> str:
    """Why a term of a clip's ranking is no hit, or nothing if it is one."""
    if hit.score <= threshold:
        return "under the threshold"
    return "" if hit.term in heard else "same speech as a better one"


def _print_table(hits: Sequence[Hit], marks: Sequence[str]) -> None:
    width = max(len("term"), *(len(hit.term) for hit in hits))
    spelling = max(len("surface"), *(len(hit.surface) for hit in hits))
    print(f"{'start':>9}{'end':>10}{'score':>8}{'prob.':>7}  {'term':<{width}}  surface")
    for hit, mark in zip(hits, marks, strict=True):
        probability = "-" if hit.probability is None else f"{hit.probability:.3f}"
        line = f"{hit.start_s:9.2f}{hit.end_s:10.2f}{hit.score:8.2f}{probability:>7}  {hit.term:<{width}}  "
        print(f"{line}{hit.surface:<{spelling}}  {mark}".rstrip())


def _json_line(hit: Hit) -> str:
    shown = {
        "term": hit.term,
        "surface": hit.surface,
        "start_s": round(hit.start_s, 3),
        "end_s": round(hit.end_s, 3),
        "score": round(hit.score, 4),
        "probability": None if hit.probability is None else round(hit.probability, 4),
    }
    return json.dumps(shown, ensure_ascii=False)


def _add_index(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("index", help="change the index of a trained run")
    add = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "add",
        help="add terms without training",
        description="Add terms to the index of a trained run, without training. They are normalised and filtered as in "
        "the run's stage glossary. The stage index, run again, forgets them: list the file in glossary.terms as well.",
    )
    _add_run(add)
    add.add_argument(
        "--terms", type=Path, required=True, metavar="FILE",
        help=".json: {phrase: {term, aliases, ...}} | .tsv, .csv: a header with phrase or term, and aliases separated "
        "by | | else: one term a line",
    )  # fmt: skip
    add.set_defaults(command=_index_add)


def _index_add(arguments: argparse.Namespace) -> None:
    from earmark.retrieval.index import add_surfaces
    from earmark.retrieval.split_rows import read_surfaces

    run = _run_folder(arguments.run)
    index = run / "index" / arguments.backend
    known = set(read_table(index / "terms.parquet", ["surface"])["surface"].to_pylist())
    with tempfile.TemporaryDirectory(prefix="earmark-terms-") as scratch:
        merged = Path(scratch)
        _merge_terms(arguments.terms, run, merged)
        surfaces = read_surfaces(merged / "glossary.json", merged / "alt2main.json")
        conflicts = [json.loads(line) for line in read_text(merged / "conflicts.jsonl").splitlines()]
    unspelled = add_surfaces(index, run / "models" / arguments.backend, surfaces)
    passed_over = [surface for surface in surfaces if surface in known]
    added = len(surfaces) - len(passed_over) - len(unspelled)
    print(
        f"{index}: surfaces added: {added}; known already: {len(passed_over)}; cannot be pronounced: {len(unspelled)}"
    )
    if added:
        print("  the rejection threshold was set without them; evaluate the run again, or search with --threshold")
    for surface in passed_over:
        print(f"  known already: {surface}")
    for surface in unspelled:
        print(f"  cannot be pronounced: {surface}; list a spelling that can as its alias")
    for row in conflicts:
        print(f"  {row['kind']}: {row['surface']} ({row['source']}): {row['decision']}")


def _merge_terms(terms: Path, run: Path, output: Path) -> None:
    """Merge one file as the run's stage glossary would: by its config.json, or the defaults where it wrote none."""
    config = run / "config.json"
    settings, language = {}, "en"
    if config.is_file():
        whole = read_json(config)
        settings, language = whole["glossary"], whole.get("corpus", {}).get("language", language)
    filters = dict(settings.get("filters", {}))
    for name in {"prefixes", "suffixes"} & filters.keys():
        filters[name] = [normalise(words) for words in filters[name]]
    blacklist = settings.get("blacklist")
    merge_glossary(
        [terms],
        [],
        output,
        blacklist=Path(blacklist) if blacklist else None,
        filters=TermFilters(**filters),
        keep_ambiguous=settings.get("ambiguous_aliases") == "keep",
        language=language,
    )


def _add_finetune(commands: argparse._SubParsersAction) -> None:
    # Its flags are the fields of earmark.speech_llm.settings, read by Transformers' parser: here all are passed on.
    parser = commands.add_parser(
        "finetune",
        help="train Whisper + projector + Qwen3, or Qwen2-Audio, on conversations",
        add_help=False,
        prefix_chars="\0",
    )
    parser.add_argument("flags", nargs="*")
    parser.set_defaults(command=_finetune)


def _finetune(arguments: argparse.Namespace) -> None:
    from earmark.speech_llm.settings import parse_settings

    settings = parse_settings(arguments.flags)
    from earmark.speech_llm.train import finetune

    finetune(settings)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, help="a trained run: its folder, or its name below data/")
    parser.add_argument("--backend", default="retriever", help="which of the run's retrievers (default: %(default)s)")


def _run_folder(run: str) -> Path:
    for folder in (Path(run), Path("data") / run):
        if (folder / "models").is_dir():
            return folder
    raise InputError(f"{run}: no trained run (no folder models in it, nor in data/{run}); run the stage train")


def main() -> int:
    """Run one subcommand; an EarmarkError is printed as one sentence and gives exit status 1."""
    parser = argparse.ArgumentParser(prog="earmark", description="Teach a speech model which words matter.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_figures, _add_search, _add_index, _add_convert, add_watching, _add_finetune, add_funasr):
        add(commands)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for talkative in ("faiss", "sentence_transformers"):  # they tell how they load
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        arguments.command(arguments)
    except BrokenPipeError:  # who reads, `head` for instance, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (EarmarkError, OSError) as error:
        print(f"earmark: {error}", file=sys.stderr)
        return 1
    return 0
