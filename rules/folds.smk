# folds: splits/train.parquet -> folds/{fold}/, each a run in small: its splits, models/{backend}/ and index/{backend}/,
# and ranked/{backend}.parquet: over all folds, every training chunk once, by a retriever that has not heard its speaker
FOLDS = [str(fold) for fold in range(config["train"]["folds"])]
# So many are kept of each chunk that a change of how many are hinted at ranks nothing anew.
RANKED_TERMS = max(20, config["speech_llm"]["hints"])


wildcard_constraints:
    fold=r"\d+",


rule fold_splits:
    input:
        train=DATA / "splits/train.parquet",
        dev=DATA / "splits/dev.parquet",
    output:
        train=[DATA / f"folds/{fold}/train.parquet" for fold in FOLDS],
        # The run's own, but for what it says of which terms training hears.
        dev=[DATA / f"folds/{fold}/dev.parquet" for fold in FOLDS],
        held_out=[DATA / f"folds/{fold}/held_out.parquet" for fold in FOLDS],
    log:
        LOGS / "fold_splits.log",
    benchmark:
        LOGS / "benchmarks/fold_splits.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    params:
        folds=len(FOLDS),
    message:
        "Dealing the training speakers out to folds"
    script:
        "../workflow/scripts/fold_splits.py"


use rule train_backend as train_fold with:
    input:
        features=[DATA / "features/{backend}" / f"{shard}.parquet" for shard in SHARDS],
        train=DATA / "folds/{fold}/train.parquet",
        dev=DATA / "folds/{fold}/dev.parquet",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
        lexicon=optional(LEXICON),
        # The whole training's: surfaces that are easily confused, nothing of how a chunk sounds.
        hard_negatives=(
            DATA / "hard_negatives/{backend}" / f"{ROUNDS}.parquet" if ROUNDS else []
        ),
    output:
        directory(DATA / "folds/{fold}/models/{backend}"),
    log:
        LOGS / "folds/{fold}/train.{backend}.log",
    benchmark:
        LOGS / "benchmarks/folds/{fold}/train.{backend}.tsv"
    message:
        "Training {wildcards.backend} without the speakers of fold {wildcards.fold}"


use rule index_backend as index_fold with:
    input:
        model=DATA / "folds/{fold}/models/{backend}",
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
    output:
        directory(DATA / "folds/{fold}/index/{backend}"),
    log:
        LOGS / "folds/{fold}/index.{backend}.log",
    benchmark:
        LOGS / "benchmarks/folds/{fold}/index.{backend}.tsv"
    message:
        "Indexing the glossary with {wildcards.backend} of fold {wildcards.fold}"


rule rank_fold:
    input:
        chunks=DATA / "folds/{fold}/held_out.parquet",
        model=DATA / "folds/{fold}/models/{backend}",
        index=DATA / "folds/{fold}/index/{backend}",
        features=[DATA / "features/{backend}" / f"{shard}.parquet" for shard in SHARDS],
    output:
        DATA / "folds/{fold}/ranked/{backend}.parquet",
    log:
        LOGS / "folds/{fold}/rank.{backend}.log",
    benchmark:
        LOGS / "benchmarks/folds/{fold}/rank.{backend}.tsv"
    threads: 1
    resources:
        **grows(
            mem_mb=3000 + LANGUAGE_MODEL_MB,
            runtime_min=240,
            gpus=int(LANGUAGE_MODEL),
        ),
    params:
        top_k=RANKED_TERMS,
        candidates=config["retrieval"][INTERACTION]["candidates"],
    message:
        "Ranking the glossary for the chunks that fold {wildcards.fold} has not heard"
    script:
        "../workflow/scripts/rank_chunks.py"


RANKED = [DATA / f"folds/{fold}/ranked/retriever.parquet" for fold in FOLDS]


rule folds:
    input:
        # Evaluation ranks what it draws by itself; hints want every chunk ranked.
        (
            RANKED
            if config["speech_llm"]["hints"]
            else [DATA / f"folds/{fold}/index/retriever" for fold in FOLDS]
        ),
    message:
        "Stage folds is whole"
