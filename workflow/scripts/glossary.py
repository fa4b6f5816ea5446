from pathlib import Path

from earmark.glossary.filters import TermFilters
from earmark.glossary.merge import merge_glossary
from earmark.logs import job_log
from earmark.text import normalise

with job_log(snakemake.log[0]):
    filters = dict(snakemake.params.filters)
    for name in ("prefixes", "suffixes"):
        filters[name] = [normalise(words) for words in filters[name]]
    merge_glossary(
        [Path(path) for path in snakemake.input.terms],
        [Path(path) for path in snakemake.input.aliases],
        Path(snakemake.output.glossary).parent,
        blacklist=Path(snakemake.input.blacklist) if snakemake.input.blacklist else None,
        filters=TermFilters(**filters),
        keep_ambiguous=snakemake.params.ambiguous_aliases == "keep",
        language=snakemake.params.language,
    )
