from pathlib import Path

from earmark.glossary.merge import merge_glossary
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    merge_glossary(
        [Path(path) for path in snakemake.input.terms],
        [Path(path) for path in snakemake.input.aliases],
        Path(snakemake.output.glossary).parent,
    )
