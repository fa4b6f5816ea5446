# corpus: a corpus in any known format -> corpus/{shard}.parquet

from earmark.corpus.inputs import input_files


rule corpus_manifest:
    input:
        input_files(config["corpus"]["format"], Path(config["corpus"]["manifest"])),
    output:
        shards=sharded("corpus/manifest"),
        counts=DATA / "corpus/manifest.json",
    log:
        LOGS / "corpus_manifest.log",
    benchmark:
        LOGS / "benchmarks/corpus_manifest.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    params:
        manifest=lambda wildcards: config["corpus"]["manifest"],
        format=config["corpus"]["format"],
        audio_root=config["corpus"]["audio_root"],
        columns=config["corpus"]["columns"],
        subset=config["corpus"]["subset"],
        language=config["corpus"]["language"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Reading the corpus into {config[corpus][shards]} shards"
    script:
        "../workflow/scripts/corpus_manifest.py"


rule corpus_shard:
    input:
        DATA / "corpus/manifest/{shard}.parquet",
    output:
        DATA / "corpus/{shard}.parquet",
    log:
        LOGS / "corpus/{shard}.log",
    benchmark:
        LOGS / "benchmarks/corpus/{shard}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=120),
    params:
        checks=config["corpus"]["checks"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Checking the audio of shard {wildcards.shard}"
    script:
        "../workflow/scripts/corpus_shard.py"


rule corpus:
    input:
        sharded("corpus"),
    message:
        "Stage corpus is whole"
