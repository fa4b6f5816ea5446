# index: models/{backend}/ + glossary -> index/{backend}/


rule index_backend:
    input:
        model=DATA / "models/{backend}",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
    output:
        directory(DATA / "index/{backend}"),
    log:
        LOGS / "index/{backend}.log",
    benchmark:
        LOGS / "benchmarks/index/{backend}.tsv"
    threads: 1
    resources:
        **grows(
            mem_mb=2000 + LANGUAGE_MODEL_MB,
            runtime_min=60,
            gpus=int(LANGUAGE_MODEL),
        ),
    params:
        kind=(
            config["retrieval"]["pooled"]["index"]
            if INTERACTION == "pooled"
            else "auto"
        ),
        background_words=(
            config["retrieval"]["alignment"]["background_words"]
            if INTERACTION == "alignment"
            else 0
        ),
        language=config["corpus"]["language"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Indexing the glossary with {wildcards.backend}"
    script:
        "../workflow/scripts/index_backend.py"


rule index:
    input:
        [DATA / "index" / backend for backend in BACKENDS],
    message:
        "Stage index is whole"
