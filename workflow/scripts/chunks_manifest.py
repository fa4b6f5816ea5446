from pathlib import Path

from earmark.chunks.from_file import deal_entries
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    deal_entries(
        [Path(path) for path in snakemake.input],
        {Path(path).stem: Path(path) for path in snakemake.output.shards},
        Path(snakemake.output.counts),
        recording_pattern=snakemake.params.recording_pattern,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
