# What every stage shares: the checked configuration, the names of shards and backends, and where things lie.
from pathlib import Path

from snakemake.exceptions import WorkflowError

from earmark.config import check_config
from earmark.errors import EarmarkError
from earmark.retrieval.section import check_retrieval
from earmark.speech_llm.section import backend_flags, check_section
from earmark.speech_llm.settings import ARCHITECTURES
from earmark.training_gpus import check_gpu_ids

try:
    check_config(config, Path(workflow.basedir) / "workflow/schemas/config.schema.yaml")
    check_section(config["speech_llm"], config["train"]["backends"])
    check_retrieval(config["retrieval"], config["train"]["schedule"])
    check_gpu_ids(config["train"], on_slurm=False)
except EarmarkError as error:
    raise WorkflowError(str(error)) from None

DATA = Path(config["data_dir"]) / config["run"]
LOGS = Path("logs") / config["run"]

SHARDS = [f"{number:04d}" for number in range(config["corpus"]["shards"])]
SPLITS = ["train", "dev", "test"]
# The control is the retriever on an encoder of the same size with random weights.
ENCODER = {"retriever": config["retrieval"]["encoder"]}
if config["retrieval"]["random_control"]:
    WEIGHTS = ENCODER["retriever"].removeprefix("bundled:")
    ENCODER["retriever_random"] = f"random:{WEIGHTS}"
BACKENDS = list(ENCODER)
# Beside the retriever: they answer in words.
SPEECH_LLMS = config["train"]["backends"][1:]
# Each is trained anew by a change of what it reads alone.
SPEECH_LLM_FLAGS = {
    name: backend_flags(config["speech_llm"], name) for name in ARCHITECTURES
}
# What transcripts are searched by, where there are any: the comparison with doing without a retriever.
MATCHES = ["letters", "phonemes"] if config["evaluate"]["transcripts"] else []
EVALUATED = [*BACKENDS, *(f"transcript_{match}" for match in MATCHES), *SPEECH_LLMS]
FIGURES = {
    name: value
    for name, value in config["evaluate"].items()
    if name not in {"transcripts", "held_out_chunks"}
}
# What folds hold out helps to set the retriever's threshold; the control's is set on dev alone, as that of transcripts.
HELD_OUT_CHUNKS = dict.fromkeys(BACKENDS, 0) | {
    "retriever": config["evaluate"]["held_out_chunks"]
}
INTERACTION = config["retrieval"]["interaction"]
# Whether a retriever's stages run a language model, which wants a GPU, and memory to load it.
LANGUAGE_MODEL = (
    INTERACTION == "pooled" and config["retrieval"]["pooled"]["towers"] == "qwen2_audio"
)
# Of the 7B model: 17 GB in bfloat16 on its way to a GPU, 34 GB in float32 where it stays on the CPU.
QWEN2_AUDIO_MB = 24_000 if config["cluster"]["gpu_partition"] else 40_000
LANGUAGE_MODEL_MB = QWEN2_AUDIO_MB if LANGUAGE_MODEL else 0
LEXICON = config["align"]["embedded"][
    "lexicon"
]  # the aligner's; a retriever spells terms with it


wildcard_constraints:
    shard=r"\d{4,5}",
    split="|".join(SPLITS),
    format="funasr_nano|funasr|conversation|flat",
    backend="|".join(BACKENDS),
    speech_llm="|".join(ARCHITECTURES),
    match="letters|phonemes",


def sharded(stage):
    """The artifacts of all shards of a stage."""
    return [DATA / stage / f"{shard}.parquet" for shard in SHARDS]


def grows(mem_mb, runtime_min, gpus=0, nodes=1):
    """Resources that double with every retry: a job killed for memory or time is asked for again with more.

    All of them are a node's, for each of `nodes`. `mem_mb` may be a function of the wildcards.
    With them goes where Slurm is to run the job, as the section `cluster` has it; a local run reads none of that.
    """
    cluster = config["cluster"]
    on_gpu = gpus and cluster["gpu_partition"] is not None
    kind, _, count = cluster["gpu_gres"].rpartition(":")
    place = {
        "slurm_partition": cluster["gpu_partition" if on_gpu else "cpu_partition"],
        "slurm_account": cluster["account"],
        "gres": f"{kind}:{int(count) * gpus}" if on_gpu else None,
        "nodes": nodes if nodes > 1 else None,
        # A task a node. With a GPU Slurm makes it so by itself, and the executor would take this for tasks a GPU.
        "tasks": nodes if nodes > 1 and not on_gpu else None,
    }
    return {
        "mem_mb": lambda wildcards, attempt: (
            mem_mb(wildcards) if callable(mem_mb) else mem_mb
        )
        * 2 ** (attempt - 1),
        "runtime": lambda wildcards, attempt: runtime_min * 2 ** (attempt - 1),
        **{name: value for name, value in place.items() if value is not None},
    }


def optional(path):
    """A path from the configuration as an input: nothing where it is null."""
    return [] if path is None else path


def of_folds(name):
    """An artifact of every fold, by its name there: an input of those backends whose threshold folds help to set."""
    return lambda wildcards: [
        DATA / f"folds/{fold}" / name.format(**wildcards)
        for fold in FOLDS
        if HELD_OUT_CHUNKS[wildcards.backend]
    ]
