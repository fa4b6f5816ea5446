# evaluate: models/ + index/ + features/ + splits/, and what the folds trained -> evaluation/{backend}/


rule evaluate_backend:
    input:
        model=DATA / "models/{backend}",
        features=[DATA / "features/{backend}" / f"{shard}.parquet" for shard in SHARDS],
        train=DATA / "splits/train.parquet",
        dev=DATA / "splits/dev.parquet",
        test=DATA / "splits/test.parquet",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
        index=DATA / "index/{backend}",
        word_list=optional(config["evaluate"]["word_list"]),
        fold_models=of_folds("models/{backend}"),
        fold_indexes=of_folds("index/{backend}"),
        held_out=of_folds("held_out.parquet"),
    output:
        metrics=DATA / "evaluation/{backend}/metrics.json",
        predictions=DATA / "evaluation/{backend}/predictions.parquet",
    log:
        LOGS / "evaluate/{backend}.log",
    benchmark:
        LOGS / "benchmarks/evaluate/{backend}.tsv"
    threads: 1
    resources:
        **grows(
            # A fold's retriever is in memory beside the run's.
            mem_mb=3000
            + LANGUAGE_MODEL_MB * (2 if config["evaluate"]["held_out_chunks"] else 1),
            runtime_min=240,
            gpus=int(LANGUAGE_MODEL),
        ),
    params:
        figures=FIGURES,
        seed=config["seed"],
        candidates=config["retrieval"][INTERACTION]["candidates"],
        held_out_chunks=lambda wildcards: HELD_OUT_CHUNKS[wildcards.backend],
    message:
        "Evaluating {wildcards.backend}"
    script:
        "../workflow/scripts/evaluate_backend.py"


rule transcribe:
    input:
        chunks=DATA / "chunks/{shard}.parquet",
        dev=DATA / "splits/dev.parquet",
        test=DATA / "splits/test.parquet",
    output:
        DATA / "transcripts/{shard}.parquet",
    log:
        LOGS / "transcribe/{shard}.log",
    benchmark:
        LOGS / "benchmarks/transcribe/{shard}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=3000, runtime_min=240, gpus=1),
    params:
        model=config["evaluate"]["transcripts"],
        language=config["corpus"]["language"],
        batch_size=config["retrieval"]["encode_batch_size"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Transcribing the dev and test chunks of shard {wildcards.shard}"
    script:
        "../workflow/scripts/transcribe.py"


rule evaluate_transcripts:
    input:
        transcripts=[DATA / "transcripts" / f"{shard}.parquet" for shard in SHARDS],
        train=DATA / "splits/train.parquet",
        dev=DATA / "splits/dev.parquet",
        test=DATA / "splits/test.parquet",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
        lexicon=optional(LEXICON),
        word_list=optional(config["evaluate"]["word_list"]),
    output:
        metrics=DATA / "evaluation/transcript_{match}/metrics.json",
        predictions=DATA / "evaluation/transcript_{match}/predictions.parquet",
    log:
        LOGS / "evaluate/transcript_{match}.log",
    benchmark:
        LOGS / "benchmarks/evaluate/transcript_{match}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=3000, runtime_min=60),
    params:
        figures=FIGURES,
        seed=config["seed"],
    message:
        "Evaluating transcripts searched by {wildcards.match}"
    script:
        "../workflow/scripts/evaluate_transcripts.py"


rule evaluate:
    input:
        [DATA / "evaluation" / name / "metrics.json" for name in EVALUATED],
    message:
        "Stage evaluate is whole"
