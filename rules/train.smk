# train: chunks -> features/{backend}/{shard}.parquet (the frozen encoder, run once) -> models/{backend}/


rule encode:
    input:
        DATA / "chunks/{shard}.parquet",
    output:
        DATA / "features/{backend}/{shard}.parquet",
    log:
        LOGS / "encode/{backend}.{shard}.log",
    benchmark:
        LOGS / "benchmarks/encode/{backend}.{shard}.tsv"
    threads: config["retrieval"]["encode_threads"]
    resources:
        **grows(mem_mb=3000, runtime_min=120),
    params:
        encoder=lambda wildcards: ENCODER[wildcards.backend],
        layer=config["retrieval"]["layer"],
        batch_size=config["retrieval"]["encode_batch_size"],
        seed=config["seed"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Encoding the chunks of shard {wildcards.shard} for {wildcards.backend}"
    script:
        "../workflow/scripts/encode.py"


rule train_backend:
    input:
        features=[DATA / "features/{backend}" / f"{shard}.parquet" for shard in SHARDS],
        train=DATA / "splits/train.parquet",
        dev=DATA / "splits/dev.parquet",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
        lexicon=optional(LEXICON),
    output:
        directory(DATA / "models/{backend}"),
    log:
        LOGS / "train/{backend}.log",
    benchmark:
        LOGS / "benchmarks/train/{backend}.tsv"
    threads: config["train"]["threads"]
    resources:
        **grows(mem_mb=3500, runtime_min=240),
    params:
        encoder=lambda wildcards: ENCODER[wildcards.backend],
        layer=config["retrieval"]["layer"],
        interaction=INTERACTION,
        settings=config["retrieval"][INTERACTION],
        schedule=config["train"]["schedule"],
        augmentation=config["train"]["augmentation"],
        seed=config["seed"],
    message:
        "Training {wildcards.backend}"
    script:
        "../workflow/scripts/train_backend.py"


rule train:
    input:
        [DATA / "models" / backend for backend in BACKENDS],
    message:
        "Stage train is whole"
