# align: corpus/{shard}.parquet -> alignments/{shard}.parquet; scored where true word times are known


rule align_shard:
    input:
        corpus=DATA / "corpus/{shard}.parquet",
        lexicon=optional(config["align"]["lexicon"]),
    output:
        DATA / "alignments/{shard}.parquet",
    log:
        LOGS / "align/{shard}.log",
    benchmark:
        LOGS / "benchmarks/align/{shard}.tsv"
    threads: config["align"]["threads"]
    resources:
        **grows(mem_mb=1500, runtime_min=240),
    params:
        seed=config["seed"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Aligning shard {wildcards.shard}"
    script:
        "../workflow/scripts/align_shard.py"


ALIGN_ACCURACY = (
    [DATA / "evaluation/alignment.json"] if config["align"]["reference"] else []
)

if ALIGN_ACCURACY:

    rule align_accuracy:
        input:
            alignments=sharded("alignments"),
            corpus=sharded("corpus"),
            reference=config["align"]["reference"],
        output:
            DATA / "evaluation/alignment.json",
        log:
            LOGS / "align_accuracy.log",
        benchmark:
            LOGS / "benchmarks/align_accuracy.tsv"
        threads: 1
        resources:
            **grows(mem_mb=2000, runtime_min=30),
        message:
            "Scoring the alignment against known word times"
        script:
            "../workflow/scripts/align_accuracy.py"


rule align:
    input:
        sharded("alignments"),
        ALIGN_ACCURACY,
    message:
        "Stage align is whole"
