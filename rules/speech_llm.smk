# speech_llm: export/conversation/, or hints/conversation/ -> models/{speech_llm}/ -> answers/{speech_llm}/{split}.parquet
# -> evaluation/{speech_llm}/, for the speech language models that train.backends names beside the retriever

# Of each process: a model of 1 B parameters or so, or Qwen2-Audio's 8 B.
SPEECH_LLM_MB = {"whisper_qwen3": 6_000, "qwen2_audio": 6_000 + QWEN2_AUDIO_MB}

HINTED = config["speech_llm"]["hints"] > 0
CONVERSATIONS = DATA / ("hints/conversation" if HINTED else "export/conversation")


rule train_speech_llm:
    input:
        train=CONVERSATIONS / "train.jsonl",
        dev=CONVERSATIONS / "dev.jsonl",
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
    output:
        directory(DATA / "models/{speech_llm}"),
    log:
        LOGS / "train/{speech_llm}.log",
    benchmark:
        LOGS / "benchmarks/train/{speech_llm}.tsv"
    threads: config["train"]["threads"] * config["train"]["processes"]
    resources:
        **grows(
            mem_mb=lambda wildcards: 2000
            + SPEECH_LLM_MB[wildcards.speech_llm] * config["train"]["processes"],
            runtime_min=480,
            gpus=config["train"]["processes"],
            nodes=config["train"]["nodes"],
        ),
    params:
        flags=lambda wildcards: SPEECH_LLM_FLAGS[wildcards.speech_llm],
        processes=config["train"]["processes"],
        seed=config["seed"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Training {wildcards.speech_llm}"
    script:
        "../workflow/scripts/train_speech_llm.py"


rule answer_split:
    input:
        model=DATA / "models/{speech_llm}",
        lines=CONVERSATIONS / "{split}.jsonl",
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
    output:
        DATA / "answers/{speech_llm}/{split}.parquet",
    log:
        LOGS / "answer/{speech_llm}.{split}.log",
    benchmark:
        LOGS / "benchmarks/answer/{speech_llm}.{split}.tsv"
    threads: config["train"]["threads"]
    resources:
        **grows(
            mem_mb=lambda wildcards: 2000 + SPEECH_LLM_MB[wildcards.speech_llm],
            runtime_min=240,
            gpus=1,
        ),
    params:
        max_new_tokens=config["speech_llm"]["max_new_tokens"],
        batch_size=config["speech_llm"]["answer_batch_size"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Answering about the {wildcards.split} chunks with {wildcards.speech_llm}"
    script:
        "../workflow/scripts/answer_split.py"


rule evaluate_answers:
    input:
        dev=DATA / "answers/{speech_llm}/dev.parquet",
        test=DATA / "answers/{speech_llm}/test.parquet",
        splits=rules.splits.output,
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
        retriever_metrics=DATA / "evaluation/retriever/metrics.json",
        retriever_predictions=DATA / "evaluation/retriever/predictions.parquet",
        hints=[
            CONVERSATIONS / f"{split}.counts.json"
            for split in (SPLITS if HINTED else [])
        ],
    output:
        metrics=DATA / "evaluation/{speech_llm}/metrics.json",
        predictions=DATA / "evaluation/{speech_llm}/predictions.parquet",
    log:
        LOGS / "evaluate/{speech_llm}.log",
    benchmark:
        LOGS / "benchmarks/evaluate/{speech_llm}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=30),
    params:
        task=config["export"]["task"],
    message:
        "Evaluating the answers of {wildcards.speech_llm}"
    script:
        "../workflow/scripts/evaluate_answers.py"


rule speech_llm:
    input:
        [DATA / "evaluation" / name / "metrics.json" for name in SPEECH_LLMS],
    message:
        "Stage speech_llm is whole"
