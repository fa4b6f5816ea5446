from pathlib import Path

from earmark.export.funnel import write_export_funnel
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    write_export_funnel(
        dict(zip(snakemake.params.exported, map(Path, snakemake.input.counts), strict=True)),
        {split: Path(snakemake.input[split]) for split in ("train", "dev", "test")},
        Path(snakemake.output[0]),
    )
