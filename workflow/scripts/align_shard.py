from pathlib import Path

from earmark.alignment.embedded import align_shard
from earmark.logs import job_log

# The aligner's worker processes import this file anew: only the job itself may run it.
if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        align_shard(
            Path(snakemake.input.corpus),
            Path(snakemake.output[0]),
            lexicon=Path(snakemake.input.lexicon) if snakemake.input.lexicon else None,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            max_rejected_fraction=snakemake.params.max_rejected_fraction,
        )
