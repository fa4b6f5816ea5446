# export: splits -> export/{format}/{split}.jsonl, and the wavs that the lines name


rule export_wavs:
    input:
        DATA / "chunks/{shard}.parquet",
    output:
        directory(DATA / "export/wavs/{shard}"),
    log:
        LOGS / "export_wavs/{shard}.log",
    benchmark:
        LOGS / "benchmarks/export_wavs/{shard}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=1000, runtime_min=60),
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
        DATA / "export/{format}/{split}.jsonl",
    log:
        LOGS / "export/{format}.{split}.log",
    benchmark:
        LOGS / "benchmarks/export/{format}.{split}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=1000, runtime_min=60),
    params:
        task=config["export"]["task"],
        prompt=config["export"][f"{config['export']['task']}_prompt"],
        tokenizer=config["export"]["tokenizer"],
        shards=SHARDS,
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
    message:
        "Writing term_level_chunks_merged.json"
    script:
        "../workflow/scripts/interchange.py"


EXPORTS = [
    DATA / f"export/{format}/{split}.jsonl"
    for format in config["export"]["formats"]
    for split in SPLITS
]
EXPORTS += rules.interchange.output if config["export"]["interchange"] else []


rule export:
    input:
        EXPORTS,
    message:
        "Stage export is whole"
