"""Several processes of one training, by torchrun: started by `torchrun`, each within `process`.

On one machine torchrun's agent is a child of the caller. On several nodes, inside a Slurm allocation of as many, srun
starts an agent on each, and the agents meet at a store that the caller keeps.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import TCPStore

from earmark.child_process import ERRORS, end, end_with_parent, passing_on_sigterm, said, variables
from earmark.errors import ConfigError, EarmarkError

# What says which job this is. All else that srun sets for a step reads like options to an srun inside that step.
_SLURM_KEPT = {
    "SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR", "SLURM_SUBMIT_HOST",
    "SLURM_TMPDIR",
}  # fmt: skip


@contextmanager
def launch_folder(output: Path, nodes: int) -> Iterator[Path]:
    """An empty folder that all processes of the training of `output` see, removed at the end.

    On one machine a temporary one; for several nodes it lies beside `output`, which they share. What a killed job left
    there is removed first.
    """
    if nodes == 1:
        with tempfile.TemporaryDirectory(prefix="earmark-training-") as folder:
            yield Path(folder)
        return
    shared = output.absolute().parent / f".{output.name}.launch"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(parents=True)
    try:
        yield shared
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def torchrun(
    module: str, arguments: Sequence[str], *, processes: int, threads: int, folder: Path, nodes: int = 1
) -> None:
    """`python -m module arguments` in `processes` processes on each of `nodes` nodes.

    Those of a node share `threads` cores and have a GPU each. `folder` is seen by all of them (`launch_folder`).
    ConfigError if there are GPUs, but fewer, or if there are to be several nodes and this is no Slurm job. What the
    processes log goes where this one's does; an EarmarkError is raised here as it was there. One that fails ends all,
    and they end with this process, also where that is killed.
    """
    if 0 < torch.cuda.device_count() < processes:
        raise ConfigError(
            f"train.processes is {processes}, but this job was given {torch.cuda.device_count()} GPU; give it as many "
            "GPUs as processes (on Slurm it asks for them), or set train.processes to their number"
        )
    errors = folder / "errors"
    errors.mkdir()
    agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    environment = {**os.environ, **variables(threads // processes, errors)}
    if nodes == 1:
        status = _run([*agent, "--standalone", "-m", module, *arguments], environment)
    else:
        host = _host_of_job(nodes)
        # Kept here, at a port that the system chooses: jobs that share a node cannot take one another's.
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        meet = [
            "--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{store.port}",
            "--rdzv-id", os.environ["SLURM_JOB_ID"], "--rdzv-conf", "is_host=false",
        ]  # fmt: skip
        status = _run([*_srun(nodes, threads), *agent, *meet, "-m", module, *arguments], _of_the_job(environment))
    if status:
        count = f"{processes * nodes} training processes" + (f" on {nodes} nodes" if nodes > 1 else "")
        raise EarmarkError(
            said(errors)
            or f"one of {count} ended without a word of its own (status {status}); its last lines are above. A "
            "process that is killed often had too little memory"
        )


@contextmanager
def process() -> Iterator[None]:
    """Within one of the processes: the first logs what it does, the others warnings; an EarmarkError ends them all."""
    rank = os.environ["RANK"]
    level = logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        yield
    except EarmarkError as error:
        Path(os.environ[ERRORS], rank).write_text(str(error), encoding="utf-8")
        sys.exit(1)


def _host_of_job(nodes: int) -> str:
    """The name by which the job's other nodes reach this one. ConfigError if this is no Slurm job, or none has that."""
    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        raise ConfigError(
            f"train.nodes is {nodes}, but this is no Slurm job: training on several nodes takes `snakemake --profile "
            "slurm`; set train.nodes to 1 to train on this machine"
        )
    host = socket.getfqdn()
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ConfigError(
            f"train.nodes is {nodes}, but this node's name, {host}, has no address ({error}), and processes on other "
            "nodes could not reach it; ask your administrator, or set train.nodes to 1"
        ) from None
    return host


def _srun(nodes: int, threads: int) -> list[str]:
    """The srun that starts one agent a node beside the step in which this process runs, and ends all if one fails."""
    return [
        "srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={threads}", "--cpu-bind=none", "--kill-on-bad-exit=1", "--input=none",
    ]  # fmt: skip


def _of_the_job(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what srun set for the step that this process is in."""
    return {
        name: value
        for name, value in environment.items()
        if name in _SLURM_KEPT or not name.startswith(("SLURM_", "SRUN_", "SBATCH_"))
    }


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """A command's exit status. SIGTERM ends torchrun's agent with its processes, and srun passes it on to agents."""
    running = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)
    try:
        with passing_on_sigterm(running):
            return running.wait()
    except BaseException:
        end(running)
        raise
