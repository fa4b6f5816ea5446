"""The doctor's checks of the machine: Python, packages, GPU, Slurm's partitions, room on the disks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from earmark.cluster.doctor import Finding, ok, problem, warning
from earmark.cluster.lustre_quota import lustre_quotas
from earmark.errors import first_line

_LEAST_GB, _SCARCE_GB = 1, 10
_LEAST_INODES, _SCARCE_INODES = 2_000, 100_000
_OPTIONAL_EXTRAS = ("quality",)


def python() -> Iterator[Finding]:
    """The interpreter, against what the package asks for."""
    wanted = SpecifierSet(metadata.metadata("earmark")["Requires-Python"])
    version = ".".join(map(str, sys.version_info[:3]))
    if version in wanted:
        yield ok("python", f"{version} ({sys.executable})")
    else:
        yield problem("python", f"{version}, Earmark wants {wanted}", "make PYTHON=/path/to/python3.11 test")


def packages() -> Iterator[Finding]:
    """Installed versions, against the package's pins. An optional package may be missing."""
    wrong = []
    checked = 0
    for text in metadata.requires("earmark") or []:
        requirement = Requirement(text)
        optional = _is_optional(requirement.marker)
        if requirement.marker and not optional and not requirement.marker.evaluate({"extra": ""}):
            continue
        checked += 1
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not optional:
                remedy = f'{sys.executable} -m pip install "{requirement.name}{requirement.specifier}"'
                yield problem("packages", f"{requirement.name} is not installed", remedy)
                wrong.append(requirement.name)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(requirement.name)
            yield warning(
                "packages",
                f"{requirement.name} is {installed}, tested with {requirement.specifier}",
                f'{sys.executable} -m pip install "{requirement.name}{requirement.specifier}"',
            )
    if not wrong:
        yield ok("packages", f"{checked} as pinned")


def _is_optional(marker: Marker | None) -> bool:
    return marker is not None and any(marker.evaluate({"extra": extra}) for extra in _OPTIONAL_EXTRAS)


def gpu(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    """What torch sees, and whether it computes. A login node has no GPU: no fault where jobs get theirs elsewhere."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            total_gb = torch.cuda.get_device_properties(index).total_memory / 1e9
            name = f"{torch.cuda.get_device_name(index)}, {total_gb:.0f} GB, CUDA {torch.version.cuda}"
            yield computes(f"cuda:{index}", name)
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        yield warning(
            "gpu",
            f"this machine has NVIDIA's driver, but torch {torch.__version__} is built for the CPU alone",
            f"install a CUDA build: {sys.executable} -m pip install torch=={torch.__version__.split('+')[0]} from "
            "PyTorch's index",
        )
    elif torch.version.cuda is not None and shutil.which("nvidia-smi"):
        yield warning(
            "gpu",
            f"torch is built for CUDA {torch.version.cuda} and finds no GPU",
            "`nvidia-smi` tells whether the driver works and is new enough for this CUDA",
        )
    else:
        where = f"; on Slurm they get one in {cluster['gpu_partition']}" if cluster["gpu_partition"] else ""
        yield ok("gpu", f"none here, jobs on this machine use the CPU{where}")


def computes(device: str, name: str) -> Finding:
    """Whether torch multiplies matrices on a device ("cuda:0") as it does on the CPU."""
    import torch

    rows = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    try:
        product = (rows.to(device) @ rows.T.to(device)).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        first = first_line(error)
        remedy = "is torch's build the one for this GPU and its driver? `nvidia-smi` tells whether another job fills it"
        return problem("gpu", f"{name}: a product of two small matrices fails: {first}", remedy)
    # TF32, where somebody has switched it on, keeps three digits.
    if not torch.allclose(product, rows @ rows.T, rtol=1e-2, atol=0.1):
        return problem("gpu", f"{name} multiplies matrices wrongly", "it may be broken: ask your administrator")
    return ok("gpu", f"{name}; it multiplies matrices as the CPU does")


def slurm(cluster: Mapping[str, Any], processes: int = 1, nodes: int = 1) -> Iterator[Finding]:
    """The partitions that the configuration names, against those there are. Nothing to say where there is no Slurm.

    `processes` are those of a training job on each of its `nodes`, of which it asks for `gpu_gres` once for each.
    """
    if shutil.which("sinfo") is None:
        if nodes > 1:
            told = f"train.nodes is {nodes}, and there is no Slurm on this machine (no sinfo on PATH)"
            yield problem("slurm", told, "set train.nodes to 1, or start the run where Slurm is")
        else:
            yield ok("slurm", "not on this machine; --profile profiles/local needs none")
        return
    if nodes > 1 and shutil.which("srun") is None:
        told = f"train.nodes is {nodes}, and srun, which starts processes on several nodes, is not on PATH"
        yield problem("slurm", told, "put Slurm's commands on PATH, or set train.nodes to 1")
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format", "%R|%a|%G|%D"], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        yield warning("slurm", "sinfo did not answer within 60 s", "is slurmctld up? ask your administrator")
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        yield warning("slurm", f"sinfo does not work: {said}", "for runs on this machine alone that is no matter")
        return
    partitions: dict[str, list[list[str]]] = {}
    for line in done.stdout.splitlines():
        name, *rest = line.split("|")
        partitions.setdefault(name, []).append(rest)
    for key in ("cpu_partition", "gpu_partition"):
        gres = cluster["gpu_gres"] if "gpu" in key else None
        yield from _partition(f"cluster.{key}", cluster[key], partitions, gres, processes)
    trained_in = cluster["gpu_partition"] or cluster["cpu_partition"]
    if nodes > 1 and trained_in in partitions:
        there = sum(int(count) for *_, count in partitions[trained_in])
        if there < nodes:
            told = f"a training job asks for {nodes} nodes (train.nodes), and partition {trained_in} has {there}"
            yield problem("slurm", told, "lower train.nodes, or set another partition")
        else:
            yield ok("slurm", f"train.nodes: {nodes} of the {there} nodes of {trained_in}, by srun")


def _partition(
    key: str, name: str | None, partitions: Mapping[str, list[list[str]]], gres: str | None, processes: int
) -> Iterator[Finding]:
    if name is None:
        yield ok("slurm", f"{key} is null: {'no job asks for a GPU' if gres else 'the default partition'}")
    elif name not in partitions:
        known = ", ".join(sorted(partitions))
        yield problem("slurm", f"{key}: there is no partition {name!r}", f"set it to one of {known}")
    elif not any(up.startswith("up") for up, *_ in partitions[name]):
        yield warning("slurm", f"partition {name} is down", "its jobs will wait; `sinfo -R` says why")
    elif gres and not (most := max(_held(gres, held) for _, held, _ in partitions[name])):
        held = ", ".join(sorted({held for _, held, _ in partitions[name]}))
        yield problem(
            "slurm",
            f"cluster.gpu_gres: partition {name} has no {gres!r} (it has {held})",
            "set cluster.gpu_gres, or cluster.gpu_partition",
        )
    elif gres and (asked := int(gres.rsplit(":", 1)[1]) * processes) > most:
        yield problem(
            "slurm",
            f"a training job asks for {asked} GPUs (train.processes x cluster.gpu_gres), and no node of {name} has "
            f"more than {most}",
            "lower train.processes or cluster.gpu_gres",
        )
    else:
        nodes = sum(int(count) for *_, count in partitions[name])
        yield ok("slurm", f"{key}: {name}, {nodes} nodes")


def _held(gres: str, held: str) -> int:
    """How many GPUs of the kind of `gres` ("gpu:h100:1", "gpu:1") a node has that sinfo prints as `held`."""
    kind = re.escape(gres.rsplit(":", 1)[0])
    return sum(int(count) for count in re.findall(rf"\b{kind}(?::[^:,(]+)*?:(\d+)\b", held))


def disk(data: Path) -> Iterator[Finding]:
    """Room and inodes where artifacts go and in the temporary folder; quotas where the system has the command."""
    scratch = Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
    for subject, folder in (("disk", data), ("scratch", scratch)):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not os.access(existing, os.W_OK):
            yield problem(subject, f"{existing}: cannot be written", "set data_dir (or TMPDIR) to a folder of yours")
            continue
        room = os.statvfs(existing)
        free_gb = room.f_bavail * room.f_frsize / 1e9
        # File systems that make inodes as they need them report none.
        inodes = room.f_favail if room.f_files else None
        told = f"{folder}: {free_gb:.1f} GB free" + ("" if inodes is None else f", {inodes:,} inodes")
        if free_gb < _LEAST_GB or (inodes is not None and inodes < _LEAST_INODES):
            yield problem(subject, told, "make room, or set data_dir (or TMPDIR) to another file system")
        elif free_gb < _SCARCE_GB or (inodes is not None and inodes < _SCARCE_INODES):
            yield warning(
                subject,
                told,
                "enough for a small corpus; export writes up to export.max_wav_files wavs, then packs them",
            )
        else:
            yield ok(subject, told)
    yield from _quota()
    folders = [data.absolute(), scratch.absolute()]
    yield from lustre_quotas(folders, (_LEAST_GB, _SCARCE_GB), (_LEAST_INODES, _SCARCE_INODES))


def _quota() -> Iterator[Finding]:
    if shutil.which("quota") is None:
        return
    try:
        # With --quiet it tells only of file systems where the quota is used up, blocks or inodes.
        done = subprocess.run(["quota", "--quiet"], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        yield warning("quota", "`quota` did not answer within 60 s", "a file server may be down")
        return
    if over := " ".join(done.stdout.split()):
        yield problem("quota", over, "delete something, or ask for more")
    else:
        yield ok("quota", "none is used up")
