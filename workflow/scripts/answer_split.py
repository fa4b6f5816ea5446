from pathlib import Path

from earmark.logs import job_log
from earmark.speech_llm.answers import answer_split

with job_log(snakemake.log[0]):
    answer_split(
        Path(snakemake.input.model),
        Path(snakemake.input.lines),
        Path(snakemake.output[0]),
        wavs=[Path(path) for path in snakemake.input.wavs],
        **snakemake.params,
        threads=snakemake.threads,
    )
