"""Starting a training: in this process, or in several.

    python -m torch.distributed.run --standalone --nproc-per-node N -m earmark.retrieval.launch JOB

is what `train_in_processes` runs; JOB is a JSON file of the arguments of `train_retriever`.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from earmark.artifacts import write_json
from earmark.files import read_json
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.recipes import Recipe, recipe_as_json, recipe_from_json
from earmark.retrieval.train import Schedule, train_retriever
from earmark.torchrun import launch_folder, process, torchrun

_PATHS = ("splits", "glossary", "alt2main", "output")


def train_in_processes(
    processes: int,
    *,
    nodes: int = 1,
    recipe: Recipe,
    schedule: Schedule,
    augmentation: FrameAugmentation,
    threads: int,
    tensorboard: Path | None = None,
    **arguments: Any,
) -> None:
    """`train_retriever` with these arguments, in so many processes on each of `nodes` nodes.

    The processes of a node share `threads` cores. Errors as `torchrun.torchrun` says.
    """
    if processes == nodes == 1:
        shape: dict[str, Any] = {"recipe": recipe, "schedule": schedule, "augmentation": augmentation}
        train_retriever(threads=threads, tensorboard=tensorboard, **shape, **arguments)
        return
    written = {
        **arguments,
        **{name: str(arguments[name]) for name in _PATHS},
        "features": [str(path) for path in arguments["features"]],
        "recipe": recipe_as_json(recipe),
        "schedule": asdict(schedule),
        "augmentation": asdict(augmentation),
        "threads": max(1, threads // processes),
        "tensorboard": str(tensorboard) if tensorboard else None,
    }
    with launch_folder(arguments["output"], nodes) as folder:
        job = folder / "job.json"
        write_json(job, written)
        torchrun(__name__, [str(job)], processes=processes, threads=threads, folder=folder, nodes=nodes)


def main(job: Path) -> None:
    """One of the processes."""
    # What the libraries will one day rename is no news to who trains.
    warnings.filterwarnings("ignore", category=FutureWarning, module="accelerate|sentence_transformers")
    with process():
        told = read_json(job)
        train_retriever(
            **{
                **told,
                **{name: Path(told[name]) for name in _PATHS},
                "features": [Path(path) for path in told["features"]],
                "recipe": recipe_from_json(told["recipe"]),
                "schedule": Schedule(**told["schedule"]),
                "augmentation": FrameAugmentation(**told["augmentation"]),
                "tensorboard": Path(told["tensorboard"]) if told["tensorboard"] else None,
            }
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
