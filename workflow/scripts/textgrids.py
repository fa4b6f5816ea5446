from pathlib import Path

from earmark.alignment.textgrid_files import pack_textgrids
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    pack_textgrids(
        Path(snakemake.input.textgrids),
        {Path(path).stem: Path(path) for path in snakemake.input.corpus},
        {Path(path).stem: Path(path) for path in snakemake.output.shards},
        Path(snakemake.output.counts),
    )
