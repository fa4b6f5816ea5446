from pathlib import Path

from earmark.alignment.backends import make_aligner
from earmark.alignment.shard import align_shard
from earmark.logs import job_log

# The aligner's worker processes import this file anew: only the job itself may run it.
if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        params, given, written = snakemake.params, snakemake.input, snakemake.output
        aligner = make_aligner(
            params.backend,
            params.settings,
            threads=snakemake.threads,
            seed=params.seed,
            textgrids=Path(given.textgrids) if given.textgrids else None,
            keep=Path(written.textgrids) if hasattr(written, "textgrids") else None,
        )
        align_shard(
            Path(given.corpus),
            Path(written.alignments),
            aligner,
            max_differing_words=params.max_differing_words,
            max_rejected_fraction=params.max_rejected_fraction,
        )
