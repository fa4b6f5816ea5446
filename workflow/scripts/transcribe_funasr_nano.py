from pathlib import Path

from earmark.funasr_nano.transcribe import transcribe_split
from earmark.logs import job_log
from earmark.packed_wavs import check_unpacked

with job_log(snakemake.log[0]):
    params, inputs = snakemake.params, snakemake.input
    check_unpacked([Path(path) for path in inputs.wavs], Path(inputs.lines))
    transcribe_split(
        Path(inputs.model),
        Path(inputs.lines),
        Path(snakemake.output[0]),
        python=Path(snakemake.config["funasr_nano"]["python"]),
        max_new_tokens=params.max_new_tokens,
        batch_size=params.batch_size,
        threads=snakemake.threads,
        max_rejected_fraction=params.max_rejected_fraction,
    )
