from pathlib import Path

from earmark.corpus.segments import Checks, check_segments
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    check_segments(
        Path(snakemake.input[0]),
        Path(snakemake.output[0]),
        Checks(**snakemake.params.checks),
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
