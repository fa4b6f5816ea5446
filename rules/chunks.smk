# chunks and merge: alignments + glossary -> chunks/{shard}.parquet -> splits/, funnel.json


CHUNKS = config["chunks"]
FROM_FILE = ("from_file", "recording_pattern")

if CHUNKS["from_file"]:

    rule chunks_manifest:
        input:
            CHUNKS["from_file"],
        output:
            shards=sharded("chunks/manifest"),
            counts=DATA / "chunks/manifest.json",
        log:
            LOGS / "chunks_manifest.log",
        benchmark:
            LOGS / "benchmarks/chunks_manifest.tsv"
        threads: 1
        resources:
            **grows(mem_mb=2000, runtime_min=120),
        params:
            recording_pattern=CHUNKS["recording_pattern"],
            max_rejected_fraction=config["max_rejected_fraction"],
        message:
            "Reading the chunks of {input}"
        script:
            "../workflow/scripts/chunks_manifest.py"

    rule chunks_shard:
        input:
            entries=DATA / "chunks/manifest/{shard}.parquet",
            glossary=rules.glossary.output.glossary,
            alt2main=rules.glossary.output.alt2main,
            ambiguous=rules.glossary.output.ambiguous,
            dropped=rules.glossary.output.dropped,
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
            language=config["corpus"]["language"],
            max_rejected_fraction=config["max_rejected_fraction"],
        message:
            "Packing the chunks of shard {wildcards.shard}"
        script:
            "../workflow/scripts/chunks_from_file.py"

    FUNNEL_STEPS = {"manifest": DATA / "chunks/manifest.json"}

else:

    rule chunks_shard:
        input:
            corpus=DATA / "corpus/{shard}.parquet",
            alignments=DATA / "alignments/{shard}.parquet",
            glossary=rules.glossary.output.glossary,
            alt2main=rules.glossary.output.alt2main,
            ambiguous=rules.glossary.output.ambiguous,
            dropped=rules.glossary.output.dropped,
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
            cut={name: value for name, value in CHUNKS.items() if name not in FROM_FILE},
            seed=config["seed"],
            max_rejected_fraction=config["max_rejected_fraction"],
        message:
            "Cutting the chunks of shard {wildcards.shard}"
        script:
            "../workflow/scripts/chunks_shard.py"

    FUNNEL_STEPS = {
        "manifest": DATA / "corpus/manifest.json",
        "corpus": sharded("corpus"),
        "alignments": sharded("alignments"),
    }


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
        **FUNNEL_STEPS,
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
