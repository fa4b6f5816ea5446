# corpus: manifest -> corpus/{shard}.parquet


rule corpus_manifest:
    message:
        "Reading the manifest into {config[corpus][shards]} shards"
    input:
        manifest=config["corpus"]["manifest"],
    output:
        shards=sharded("corpus/manifest"),
        counts=DATA / "corpus/manifest.json",
    params:
        corpus=config["corpus"],
        max_rejected_fraction=config["max_rejected_fraction"],
    log:
        LOGS / "corpus_manifest.log",
    benchmark:
        LOGS / "benchmarks/corpus_manifest.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    script:
        "../workflow/scripts/corpus_manifest.py"


rule corpus_shard:
    message:
        "Checking the audio of shard {wildcards.shard}"
    input:
        DATA / "corpus/manifest/{shard}.parquet",
    output:
        DATA / "corpus/{shard}.parquet",
    params:
        checks=config["corpus"]["checks"],
        max_rejected_fraction=config["max_rejected_fraction"],
    log:
        LOGS / "corpus/{shard}.log",
    benchmark:
        LOGS / "benchmarks/corpus/{shard}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=120),
    script:
        "../workflow/scripts/corpus_shard.py"


rule corpus:
    message:
        "Stage corpus is whole"
    input:
        sharded("corpus"),
