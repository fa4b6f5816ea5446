# train: chunks -> features/{backend}/{shard}.parquet (the frozen encoder, run once) -> models/{backend}/
# With hard negatives, a pooled retriever is trained in rounds, each with what the one before takes for one another:
# rounds/{backend}/0/ -> hard_negatives/{backend}/1.parquet -> rounds/{backend}/1/ -> ... -> models/{backend}/
MINING = config["retrieval"]["pooled"]["hard_negatives"]
ROUNDS = MINING["rounds"] if MINING["mode"] != "skip" else 0
if ROUNDS and INTERACTION != "pooled":
    raise WorkflowError(
        "retrieval.pooled.hard_negatives has a pooled retriever to train; set its mode to skip, or "
        "retrieval.interaction to pooled"
    )
# What shapes the model: neither how it is indexed, nor how many rounds came before, nor towers that it does not have.
TOWERS = {
    "spelling": {"embedding_dim", "audio_head", "text_tower"},
    "text_model": {"embedding_dim", "audio_head", "text_model"},
    "fused": {"embedding_dim", "audio_head", "text_tower", "text_model"},
    "qwen2_audio": {"qwen2_audio"},
}
UNREAD = {"index", "hard_negatives", "background_words"} | (
    set().union(*TOWERS.values()) - TOWERS[config["retrieval"]["pooled"]["towers"]]
)
TRAINED_WITH = {
    name: value
    for name, value in config["retrieval"][INTERACTION].items()
    if name not in UNREAD
}


wildcard_constraints:
    round=r"\d+",


rule encode:
    input:
        chunks=DATA / "chunks/{shard}.parquet",
        # A limit leaves most chunks of a large corpus out. Without one, encoding need not wait for the splits.
        splits=(
            rules.splits.output
            if config["splits"]["max_chunks_per_term"]
            or config["splits"]["max_train_chunks"]
            else []
        ),
    output:
        DATA / "features/{backend}/{shard}.parquet",
    log:
        LOGS / "encode/{backend}.{shard}.log",
    benchmark:
        LOGS / "benchmarks/encode/{backend}.{shard}.tsv"
    threads: config["retrieval"]["encode_threads"]
    resources:
        **grows(mem_mb=3000, runtime_min=120, gpus=1),
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
        hard_negatives=(
            DATA / "hard_negatives/{backend}" / f"{ROUNDS}.parquet" if ROUNDS else []
        ),
    output:
        directory(DATA / "models/{backend}"),
    log:
        LOGS / "train/{backend}.log",
    benchmark:
        LOGS / "benchmarks/train/{backend}.tsv"
    threads: config["train"]["threads"] * config["train"]["processes"]
    resources:
        **grows(
            mem_mb=2000 + (1500 + LANGUAGE_MODEL_MB) * config["train"]["processes"],
            runtime_min=240,
            gpus=config["train"]["processes"],
            nodes=config["train"]["nodes"],
        ),
    params:
        encoder=lambda wildcards: ENCODER[wildcards.backend],
        layer=config["retrieval"]["layer"],
        interaction=INTERACTION,
        settings=TRAINED_WITH,
        max_negatives=MINING["k"] if ROUNDS else 0,
        # Whose homophones are known; an alignment knows by its units what sounds alike.
        language=config["corpus"]["language"] if INTERACTION == "pooled" else "",
        schedule=config["train"]["schedule"],
        augmentation=config["train"]["augmentation"],
        log_steps=config["train"]["log_steps"],
        seed=config["seed"],
    message:
        "Training {wildcards.backend}"
    script:
        "../workflow/scripts/train_backend.py"


if ROUNDS:

    use rule train_backend as train_round with:
        input:
            features=[
                DATA / "features/{backend}" / f"{shard}.parquet" for shard in SHARDS
            ],
            train=DATA / "splits/train.parquet",
            dev=DATA / "splits/dev.parquet",
            glossary=rules.glossary.output.glossary,
            alt2main=rules.glossary.output.alt2main,
            lexicon=optional(LEXICON),
            # The first training has none.
            hard_negatives=lambda wildcards: (
                []
                if wildcards.round == "0"
                else DATA
                / f"hard_negatives/{wildcards.backend}/{wildcards.round}.parquet"
            ),
        output:
            directory(DATA / "rounds/{backend}/{round}"),
        log:
            LOGS / "train/{backend}.{round}.log",
        benchmark:
            LOGS / "benchmarks/train/{backend}.{round}.tsv"
        message:
            "Training {wildcards.backend}, to be mined for hard negatives (round {wildcards.round})"

    rule mine_round:
        input:
            model=lambda wildcards: DATA
            / f"rounds/{wildcards.backend}/{int(wildcards.round) - 1}",
            earlier=lambda wildcards: (
                DATA
                / f"hard_negatives/{wildcards.backend}/{int(wildcards.round) - 1}.parquet"
                if MINING["mode"] == "update" and wildcards.round != "1"
                else []
            ),
            train=DATA / "splits/train.parquet",
            glossary=rules.glossary.output.glossary,
            alt2main=rules.glossary.output.alt2main,
            lexicon=optional(LEXICON),
        output:
            DATA / "hard_negatives/{backend}/{round}.parquet",
        log:
            LOGS / "mine/{backend}.{round}.log",
        benchmark:
            LOGS / "benchmarks/mine/{backend}.{round}.tsv"
        threads: 1
        resources:
            **grows(
                mem_mb=2000 + LANGUAGE_MODEL_MB,
                runtime_min=60,
                gpus=int(LANGUAGE_MODEL),
            ),
        params:
            k=MINING["k"],
            pronunciation=MINING["pronunciation"],
            language=config["corpus"]["language"],
            index=config["retrieval"]["pooled"]["index"],
        message:
            "Mining hard negatives for {wildcards.backend}, round {wildcards.round}"
        script:
            "../workflow/scripts/mine_round.py"

    rule mine:
        input:
            [
                DATA / "hard_negatives" / backend / f"{ROUNDS}.parquet"
                for backend in BACKENDS
            ],
        message:
            "Stage mine is whole"


rule train:
    input:
        [DATA / "models" / backend for backend in [*BACKENDS, *SPEECH_LLMS]],
    message:
        "Stage train is whole"
