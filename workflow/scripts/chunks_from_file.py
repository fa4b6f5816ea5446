from pathlib import Path

from earmark.chunks.from_file import pack_chunks
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    pack_chunks(
        Path(snakemake.input.entries),
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.input.ambiguous),
        Path(snakemake.input.dropped),
        Path(snakemake.output[0]),
        language=snakemake.params.language,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
