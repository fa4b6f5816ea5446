"""What a corpus of another size costs: jobs, the time and memory of planning them, core-hours, disk and files.

    make demo && .venv/bin/python benchmarks/scale.py            (GigaSpeech XL, by benchmarks/gigaspeech_xl.yaml)
    .venv/bin/python benchmarks/scale.py --configfile my.yaml --hours 300 --chunks 2e5 --split-chunks 1e5

The plan is Snakemake's own: a dry run of the whole workflow under the Slurm profile, on empty stand-ins for the corpus
and the glossary. Hours and bytes are those of a finished run (--run, its logs/{run}/benchmarks), per hour of speech,
chunk or split chunk, times the corpus'. What a job spends on starting is counted as if it grew with the corpus, so
the hours are too many rather than too few; training and encoding are those of the run's own encoder.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]

# What a rule's time grows with, and its benchmarks below logs/{run}/benchmarks, for one of the retrievers. Left out is
# what takes less than a minute in all whatever the corpus, and evaluation, whose chunks one chooses.
GROWS_WITH = {
    "corpus_shard": ("hour", "corpus/*.tsv"),
    "align_shard": ("hour", "align/*.tsv"),
    "chunks_shard": ("hour", "chunks/*.tsv"),
    "export_wavs": ("split chunk", "export_wavs/*.tsv"),
    "encode": ("split chunk", "encode/{backend}.*.tsv"),
    "train_backend": ("split chunk", "train/{backend}.tsv"),
    "train_fold": ("split chunk", "folds/*/train.{backend}.tsv"),
}
FOLDERS = {
    "corpus": "hour",
    "alignments": "hour",
    "chunks": "chunk",
    "export/wavs": "split chunk",
    "features": "split chunk",
    "splits": "split chunk",
}
FILES_A_JOB = 4  # its log and its record, its benchmark, Slurm's log


@dataclass(frozen=True)
class Plan:
    """What a dry run said and took."""

    jobs: dict[str, int]
    wall_s: float
    cpu_s: float
    peak_mb: float


def plan(configfile: Path) -> Plan:
    """A dry run of the workflow with stand-ins for the inputs that `configfile` names."""
    config = yaml.safe_load(configfile.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        stand_in = Path(scratch, "input")
        stand_in.write_text("")
        inputs = {
            "corpus": {"manifest": str(stand_in)},
            "glossary": {name: [str(stand_in)] for name in ("terms", "aliases") if name in config.get("glossary", {})},
        }
        override = Path(scratch, "inputs.yaml")
        override.write_text(yaml.safe_dump(inputs))
        command = [
            Path(sys.executable).parent / "snakemake", "--dry-run", "--quiet", "rules",
            "--profile", ROOT / "profiles/slurm", "--snakefile", ROOT / "Snakefile", "--directory", scratch,
            "--configfile", configfile.resolve(), override,
        ]  # fmt: skip
        started = time.monotonic()
        # Unbuffered into a file, so that the process can be waited for with its own resource usage.
        output = Path(scratch, "output")
        with output.open("w") as stream:
            process = subprocess.Popen([str(word) for word in command], stdout=stream, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - started
        text = output.read_text()
    if process.returncode:
        raise SystemExit(f"the dry run failed:\n{text[-4000:]}")
    jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    return Plan(jobs, wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3)


def cpu_s(folder: Path, pattern: str) -> tuple[float, float]:
    """CPU time of a rule's jobs in a finished run, and their wall time."""
    rows = [row for path in sorted(folder.glob(pattern)) for row in csv.DictReader(path.open(), delimiter="\t")]
    return sum(float(row["cpu_time"]) for row in rows), sum(float(row["s"]) for row in rows)


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def units_of(run: Path) -> dict[str, float]:
    """How much of each unit a finished run holds."""
    hours = sum(
        pc.sum(pq.read_table(path, columns=["duration_s"])["duration_s"]).as_py() / 3600
        for path in (run / "corpus").glob("[0-9]*.parquet")
    )
    rows = {
        name: sum(pq.read_metadata(path).num_rows for path in (run / name).glob("*.parquet"))
        for name in ("chunks", "splits")
    }
    return {"hour": hours, "chunk": rows["chunks"], "split chunk": rows["splits"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, default=ROOT / "benchmarks/gigaspeech_xl.yaml")
    parser.add_argument("--run", default="demo", help="the finished run whose rates count (default: %(default)s)")
    parser.add_argument("--backend", default="retriever")
    parser.add_argument("--hours", type=float, default=10_000)
    parser.add_argument("--chunks", type=float, default=5e6, help="cut in all (default: %(default).0f)")
    parser.add_argument("--split-chunks", type=float, default=1e6, help="kept by the splits (default: %(default).0f)")
    arguments = parser.parse_args()

    run = ROOT / "data" / arguments.run
    if not (run / "funnel.json").is_file():
        raise SystemExit(f"{run}: no finished run to take rates from; run `make demo`")
    measured = units_of(run)
    wanted = {"hour": arguments.hours, "chunk": arguments.chunks, "split chunk": arguments.split_chunks}

    planned = plan(arguments.configfile)
    total = planned.jobs.pop("total")
    print(
        f"{total} jobs, planned in {planned.wall_s:.1f} s ({planned.cpu_s:.1f} s of CPU) with {planned.peak_mb:.0f} MB"
    )

    print(f"\n{'rule':<16}{'jobs':>6}  {'unit':<12}{'CPU s a unit':>13}{'core-hours':>12}{'hours a job':>13}")
    for rule, (unit, pattern) in GROWS_WITH.items():
        benchmarks = ROOT / "logs" / arguments.run / "benchmarks"
        used, wall = cpu_s(benchmarks, pattern.format(backend=arguments.backend))
        rate, jobs = used / measured[unit], planned.jobs.get(rule, 0)
        if not jobs or not wall:
            continue
        core_hours = rate * wanted[unit] / 3600
        print(f"{rule:<16}{jobs:>6}  {unit:<12}{rate:>13.3f}{core_hours:>12.0f}{core_hours / jobs:>13.2f}")

    print(f"\n{'folder':<16}{'GB':>8}{'files':>8}")
    shards = max(planned.jobs.values())
    for name, unit in FOLDERS.items():
        size = folder_bytes(run / name) / measured[unit] * wanted[unit] / 1e9
        size /= len(list((run / name).iterdir())) if name == "features" else 1
        print(f"{name:<16}{size:>8.0f}{2 * shards if name != 'splits' else 6:>8}")
    print(f"{'logs':<16}{'':>8}{FILES_A_JOB * total:>8}")
    amounts = ", ".join(f"{amount:,.2f} {unit}s" for unit, amount in measured.items())
    print(f"\nrates from {run.relative_to(ROOT)}: {amounts}")


if __name__ == "__main__":
    main()
