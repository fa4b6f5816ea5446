# chunks and merge: alignments + glossary -> chunks/{shard}.parquet -> splits/, funnel.json


rule chunks_shard:
    message:
        "Cutting the chunks of shard {wildcards.shard}"
    input:
        corpus=DATA / "corpus/{shard}.parquet",
        alignments=DATA / "alignments/{shard}.parquet",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
    output:
        DATA / "chunks/{shard}.parquet",
    params:
        cut=config["chunks"],
        seed=config["seed"],
        max_rejected_fraction=config["max_rejected_fraction"],
    log:
        LOGS / "chunks/{shard}.log",
    benchmark:
        LOGS / "benchmarks/chunks/{shard}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=120),
    script:
        "../workflow/scripts/chunks_shard.py"


rule chunks:
    message:
        "Stage chunks is whole"
    input:
        sharded("chunks"),


rule splits:
    message:
        "Splitting the chunks by speaker and term"
    input:
        chunks=sharded("chunks"),
        glossary=rules.glossary.output.glossary,
    output:
        **{split: DATA / f"splits/{split}.parquet" for split in SPLITS},
    params:
        splits=config["splits"],
        seed=config["seed"],
    log:
        LOGS / "splits.log",
    benchmark:
        LOGS / "benchmarks/splits.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    script:
        "../workflow/scripts/splits.py"


rule funnel:
    message:
        "Accounting for every row"
    input:
        manifest=DATA / "corpus/manifest.json",
        corpus=sharded("corpus"),
        alignments=sharded("alignments"),
        chunks=sharded("chunks"),
        **rules.splits.output,
    output:
        DATA / "funnel.json",
    log:
        LOGS / "funnel.log",
    benchmark:
        LOGS / "benchmarks/funnel.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=30),
    script:
        "../workflow/scripts/funnel.py"


rule merge:
    message:
        "Stage merge is whole"
    input:
        rules.splits.output,
        rules.funnel.output,
