from pathlib import Path

from earmark.evaluation.ranked import Settings
from earmark.evaluation.transcript_search import evaluate_transcripts
from earmark.logs import job_log
from earmark.pronunciations import EnglishPronouncer, read_lexicon

with job_log(snakemake.log[0]):
    lexicon = read_lexicon(Path(snakemake.input.lexicon)) if snakemake.input.lexicon else {}
    evaluate_transcripts(
        [Path(path) for path in snakemake.input.transcripts],
        Path(snakemake.input.test).parent,
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.output.metrics),
        Path(snakemake.output.predictions),
        pronounce=EnglishPronouncer(lexicon).first if snakemake.wildcards.match == "phonemes" else None,
        settings=Settings.of(snakemake.params.figures, snakemake.params.seed),
        threads=snakemake.threads,
    )
