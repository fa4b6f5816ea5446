# evaluate: models/ + index/ + features/ + splits/ -> evaluation/{backend}/


rule evaluate_backend:
    input:
        model=DATA / "models/{backend}",
        features=[DATA / "features/{backend}" / f"{shard}.parquet" for shard in SHARDS],
        dev=DATA / "splits/dev.parquet",
        test=DATA / "splits/test.parquet",
        index=DATA / "index/{backend}/terms.faiss",
        terms=DATA / "index/{backend}/terms.parquet",
    output:
        metrics=DATA / "evaluation/{backend}/metrics.json",
        predictions=DATA / "evaluation/{backend}/predictions.parquet",
    log:
        LOGS / "evaluate/{backend}.log",
    benchmark:
        LOGS / "benchmarks/evaluate/{backend}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=3000, runtime_min=60),
    params:
        evaluate=config["evaluate"],
        seed=config["seed"],
    message:
        "Evaluating {wildcards.backend}"
    script:
        "../workflow/scripts/evaluate_backend.py"


rule evaluate:
    input:
        [DATA / "evaluation" / backend / "metrics.json" for backend in BACKENDS],
    message:
        "Stage evaluate is whole"
