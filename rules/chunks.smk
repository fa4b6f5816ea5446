# chunks and merge: alignments + glossary -> chunks/{shard}.parquet -> splits/, funnel.json


rule chunks_shard:
    input:
        corpus=DATA / "corpus/{shard}.parquet",
        alignments=DATA / "alignments/{shard}.parquet",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
        ambiguous=rules.glossary.output.ambiguous,
    output:
        DATA / "chunks/{shard}.parquet",
    log:
        LOGS / "chunks/{shard}.log",
    benchmark:
        LOGS / "benchmarks/chunks/{shard}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=120),
    params:
        cut=config["chunks"],
        seed=config["seed"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Cutting the chunks of shard {wildcards.shard}"
    script:
        "../workflow/scripts/chunks_shard.py"


rule chunks:
    input:
        sharded("chunks"),
    message:
        "Stage chunks is whole"


rule splits:
    input:
        chunks=sharded("chunks"),
        glossary=rules.glossary.output.glossary,
    output:
        **{split: DATA / f"splits/{split}.parquet" for split in SPLITS},
    log:
        LOGS / "splits.log",
    benchmark:
        LOGS / "benchmarks/splits.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    params:
        splits=config["splits"],
        seed=config["seed"],
    message:
        "Splitting the chunks by speaker and term"
    script:
        "../workflow/scripts/splits.py"


rule funnel:
    input:
        **rules.splits.output,
        manifest=DATA / "corpus/manifest.json",
        corpus=sharded("corpus"),
        alignments=sharded("alignments"),
        chunks=sharded("chunks"),
    output:
        DATA / "funnel.json",
    log:
        LOGS / "funnel.log",
    benchmark:
        LOGS / "benchmarks/funnel.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=30),
    message:
        "Accounting for every row"
    script:
        "../workflow/scripts/funnel.py"


rule merge:
    input:
        rules.splits.output,
        rules.funnel.output,
    message:
        "Stage merge is whole"
