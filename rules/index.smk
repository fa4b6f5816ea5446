# index: models/{backend}/ + glossary -> index/{backend}/


rule index_backend:
    input:
        model=DATA / "models/{backend}",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
    output:
        index=DATA / "index/{backend}/terms.faiss",
        terms=DATA / "index/{backend}/terms.parquet",
    log:
        LOGS / "index/{backend}.log",
    benchmark:
        LOGS / "benchmarks/index/{backend}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    message:
        "Indexing the glossary with {wildcards.backend}"
    script:
        "../workflow/scripts/index_backend.py"


rule index:
    input:
        [DATA / "index" / backend / "terms.faiss" for backend in BACKENDS],
    message:
        "Stage index is whole"
