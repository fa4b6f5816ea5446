from pathlib import Path

from earmark.export.wavs import write_wavs
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    write_wavs(Path(snakemake.input[0]), Path(snakemake.output[0]))
