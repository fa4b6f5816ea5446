# funasr_nano: export/funasr_nano/ -> models/funasr_nano/ -> answers/funasr_nano/{split}.parquet
# -> evaluation/funasr_nano/, where train.backends names it. FunASR itself runs in an environment of its own.
FUNASR = config["funasr_nano"]
if "funasr_nano" in SPEECH_LLMS and "funasr_nano" not in EXPORT["formats"]:
    raise WorkflowError(
        "train.backends names funasr_nano, which trains on the export funasr_nano, but export.formats is "
        f"{EXPORT['formats']}; add funasr_nano to it"
    )
if "funasr_nano" in SPEECH_LLMS and not FUNASR["model_dir"]:
    raise WorkflowError(
        "train.backends names funasr_nano, but funasr_nano.model_dir is not set; give the folder of a Fun-ASR-Nano, or "
        "its hub id (FunAudioLLM/Fun-ASR-Nano-2512)"
    )
# How it is asked, after training.
TRANSCRIBED_WITH = ("transcribe_batch_size", "max_new_tokens")


rule train_funasr_nano:
    input:
        train=DATA / "export/funasr_nano/train.jsonl",
        dev=DATA / "export/funasr_nano/dev.jsonl",
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
        conf=FUNASR["conf"],
    output:
        directory(DATA / "models/funasr_nano"),
    log:
        LOGS / "train/funasr_nano.log",
    benchmark:
        LOGS / "benchmarks/train/funasr_nano.tsv"
    threads: config["train"]["threads"] * config["train"]["processes"]
    resources:
        **grows(mem_mb=16000, runtime_min=720, gpus=config["train"]["processes"]),
    params:
        section={
            name: value
            for name, value in FUNASR.items()
            if name not in ("conf", "python", *TRANSCRIBED_WITH)
        },
        processes=config["train"]["processes"],
        seed=config["seed"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Training funasr_nano"
    script:
        "../workflow/scripts/train_funasr_nano.py"


rule transcribe_funasr_nano:
    input:
        model=DATA / "models/funasr_nano",
        lines=DATA / "export/funasr_nano/{split}.jsonl",
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
    output:
        DATA / "answers/funasr_nano/{split}.parquet",
    log:
        LOGS / "answer/funasr_nano.{split}.log",
    benchmark:
        LOGS / "benchmarks/answer/funasr_nano.{split}.tsv"
    threads: config["train"]["threads"]
    resources:
        **grows(mem_mb=8000, runtime_min=240, gpus=1),
    params:
        batch_size=FUNASR["transcribe_batch_size"],
        max_new_tokens=FUNASR["max_new_tokens"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Transcribing the {wildcards.split} chunks with funasr_nano"
    script:
        "../workflow/scripts/transcribe_funasr_nano.py"


use rule evaluate_answers as evaluate_funasr_nano with:
    input:
        dev=DATA / "answers/funasr_nano/dev.parquet",
        test=DATA / "answers/funasr_nano/test.parquet",
        splits=rules.splits.output,
        glossary=rules.glossary.output.glossary,
        alt2main=rules.glossary.output.alt2main,
        retriever_metrics=DATA / "evaluation/retriever/metrics.json",
        retriever_predictions=DATA / "evaluation/retriever/predictions.parquet",
        # Its prompt has no place for them.
        hints=[],
    output:
        metrics=DATA / "evaluation/funasr_nano/metrics.json",
        predictions=DATA / "evaluation/funasr_nano/predictions.parquet",
    log:
        LOGS / "evaluate/funasr_nano.log",
    benchmark:
        LOGS / "benchmarks/evaluate/funasr_nano.tsv"
    params:
        # Whatever conversations ask for: Fun-ASR-Nano transcribes.
        task="transcribe",
    message:
        "Evaluating the transcripts of funasr_nano"


rule funasr_nano:
    input:
        DATA / "evaluation/funasr_nano/metrics.json",
    message:
        "Stage funasr_nano is whole"
