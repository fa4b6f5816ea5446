# What every stage shares: the checked configuration, the names of shards and backends, and where things lie.
from pathlib import Path

from snakemake.exceptions import WorkflowError

from earmark.config import check_config
from earmark.errors import ConfigError

try:
    check_config(config, Path(workflow.basedir) / "workflow/schemas/config.schema.yaml")
except ConfigError as error:
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
# What transcripts are searched by, where there are any: the comparison with doing without a retriever.
MATCHES = ["letters", "phonemes"] if config["evaluate"]["transcripts"] else []
EVALUATED = [*BACKENDS, *(f"transcript_{match}" for match in MATCHES)]
FIGURES = {
    name: value for name, value in config["evaluate"].items() if name != "transcripts"
}
INTERACTION = config["retrieval"]["interaction"]
LEXICON = config["align"]["embedded"][
    "lexicon"
]  # the aligner's; a retriever spells terms with it


wildcard_constraints:
    shard=r"\d{4,5}",
    split="|".join(SPLITS),
    format="funasr_nano|funasr|conversation|flat",
    backend="|".join(BACKENDS),
    match="letters|phonemes",


def sharded(stage):
    """The artifacts of all shards of a stage."""
    return [DATA / stage / f"{shard}.parquet" for shard in SHARDS]


def grows(mem_mb, runtime_min):
    """Resources that double with every retry: a job killed for memory or time is asked for again with more."""
    return {
        "mem_mb": lambda wildcards, attempt: mem_mb * 2 ** (attempt - 1),
        "runtime": lambda wildcards, attempt: runtime_min * 2 ** (attempt - 1),
    }


def optional(path):
    """A path from the configuration as an input: nothing where it is null."""
    return [] if path is None else path
