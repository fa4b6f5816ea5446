from pathlib import Path

from earmark.logs import job_log
from earmark.pronunciations import read_lexicon
from earmark.retrieval.hard_negatives import mine_hard_negatives

with job_log(snakemake.log[0]):
    params = snakemake.params
    mine_hard_negatives(
        Path(snakemake.input.model),
        Path(snakemake.input.train),
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.output[0]),
        earlier=Path(snakemake.input.earlier) if snakemake.input.earlier else None,
        number=int(snakemake.wildcards.round),
        k=params.k,
        pronunciation=params.pronunciation,
        language=params.language,
        lexicon=read_lexicon(Path(snakemake.input.lexicon)) if snakemake.input.lexicon else {},
        index=params.index,
        threads=snakemake.threads,
    )
