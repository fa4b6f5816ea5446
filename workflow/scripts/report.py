from pathlib import Path

from earmark.logs import job_log
from earmark.report.page import write_report

with job_log(snakemake.log[0]):
    write_report(
        Path(snakemake.params.run_folder),
        Path(snakemake.params.benchmarks),
        list(snakemake.params.shards),
        dict(snakemake.params.config),
        Path(snakemake.output.report),
        Path(snakemake.output.config),
    )
