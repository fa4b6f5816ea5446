# export: splits -> export/{format}/{split}.jsonl, and the wavs that the lines name


EXPORT = config["export"]
# The interchange lists hold every chunk; the formats' lines, those of the splits.
WAVS = {
    "all_chunks": EXPORT["interchange"] or EXPORT["interchange_shard_rows"] is not None,
    "packed": EXPORT["wav_root"] is not None,
    "max_files": EXPORT["max_wav_files"],
}
WAV_ROOT = EXPORT["wav_root"] or DATA / "export/wavs"


rule export_wavs:
    input:
        chunks=DATA / "chunks/{shard}.parquet",
        splits=rules.splits.output,
    output:
        directory(DATA / "export/wavs/{shard}"),
    log:
        LOGS / "export_wavs/{shard}.log",
    benchmark:
        LOGS / "benchmarks/export_wavs/{shard}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=1000, runtime_min=60),
    params:
        wavs=WAVS,
    message:
        "Writing the wavs of shard {wildcards.shard}"
    script:
        "../workflow/scripts/export_wavs.py"


rule export_split:
    input:
        split=DATA / "splits/{split}.parquet",
        glossary=rules.glossary.output.glossary,
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
    output:
        lines=DATA / "export/{format}/{split}.jsonl",
        counts=DATA / "export/{format}/{split}.counts.json",
    log:
        LOGS / "export/{format}.{split}.log",
    benchmark:
        LOGS / "benchmarks/export/{format}.{split}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=1000, runtime_min=60),
    params:
        task=EXPORT["task"],
        # A function: in a text, Snakemake would take braces for wildcards.
        prompt=lambda wildcards: EXPORT[f"{EXPORT['task']}_prompt"],
        tokenizer=EXPORT["tokenizer"],
        shards=SHARDS,
        wav_root=WAV_ROOT,
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Writing {wildcards.format} lines of {wildcards.split}"
    script:
        "../workflow/scripts/export_split.py"


rule interchange:
    input:
        chunks=sharded("chunks"),
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
    output:
        DATA / "term_level_chunks_merged.json",
    log:
        LOGS / "interchange.log",
    benchmark:
        LOGS / "benchmarks/interchange.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    params:
        context_s=config["chunks"]["context_s"],
        wav_root=WAV_ROOT,
    message:
        "Writing term_level_chunks_merged.json"
    script:
        "../workflow/scripts/interchange.py"


rule interchange_shards:
    input:
        chunks=sharded("chunks"),
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
    output:
        directory(DATA / "term_level_chunks"),
    log:
        LOGS / "interchange_shards.log",
    benchmark:
        LOGS / "benchmarks/interchange_shards.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    params:
        context_s=config["chunks"]["context_s"],
        shard_rows=EXPORT["interchange_shard_rows"],
        wav_root=WAV_ROOT,
    message:
        "Writing the lists of term_level_chunks/"
    script:
        "../workflow/scripts/interchange_shards.py"


FORMAT_SPLITS = [(format, split) for format in EXPORT["formats"] for split in SPLITS]


rule export_funnel:
    input:
        **rules.splits.output,
        counts=[
            DATA / f"export/{format}/{split}.counts.json"
            for format, split in FORMAT_SPLITS
        ],
    output:
        DATA / "export/funnel.json",
    log:
        LOGS / "export_funnel.log",
    benchmark:
        LOGS / "benchmarks/export_funnel.tsv"
    threads: 1
    resources:
        **grows(mem_mb=1000, runtime_min=10),
    params:
        exported=FORMAT_SPLITS,
    message:
        "Accounting for every exported row"
    script:
        "../workflow/scripts/export_funnel.py"


EXPORTS = [DATA / f"export/{format}/{split}.jsonl" for format, split in FORMAT_SPLITS]
EXPORTS += rules.export_funnel.output if FORMAT_SPLITS else []
EXPORTS += rules.interchange.output if EXPORT["interchange"] else []
EXPORTS += (
    rules.interchange_shards.output
    if EXPORT["interchange_shard_rows"] is not None
    else []
)


rule export:
    input:
        EXPORTS,
    message:
        "Stage export is whole"
