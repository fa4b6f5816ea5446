# hints: folds/{fold}/ranked/, and the run's own retriever -> hints/conversation/{split}.jsonl, the lines of
# export/conversation/ with the terms in them that a retriever ranks first that has not heard the chunk


use rule rank_fold as rank_split with:
    input:
        chunks=DATA / "splits/{split}.parquet",
        model=DATA / "models/{backend}",
        index=DATA / "index/{backend}",
        features=[DATA / "features/{backend}" / f"{shard}.parquet" for shard in SHARDS],
    output:
        DATA / "hints/ranked/{backend}.{split}.parquet",
    log:
        LOGS / "hints/rank.{backend}.{split}.log",
    benchmark:
        LOGS / "benchmarks/hints/rank.{backend}.{split}.tsv"
    message:
        "Ranking the glossary for the {wildcards.split} chunks"


rule hint_split:
    input:
        split=DATA / "splits/{split}.parquet",
        glossary=rules.glossary.output.glossary,
        wavs=[DATA / f"export/wavs/{shard}" for shard in SHARDS],
        rankings=lambda wildcards: (
            RANKED
            if wildcards.split == "train"
            else [DATA / f"hints/ranked/retriever.{wildcards.split}.parquet"]
        ),
    output:
        lines=DATA / "hints/conversation/{split}.jsonl",
        counts=DATA / "hints/conversation/{split}.counts.json",
    log:
        LOGS / "hints/{split}.log",
    benchmark:
        LOGS / "benchmarks/hints/{split}.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2500, runtime_min=60),
    params:
        hints=config["speech_llm"]["hints"],
        # Functions, as what stands in braces in a prompt is no wildcard.
        hint_prompt=lambda wildcards: config["speech_llm"]["hint_prompt"],
        prompt=lambda wildcards: EXPORT[f"{EXPORT['task']}_prompt"],
        task=EXPORT["task"],
        tokenizer=EXPORT["tokenizer"],
        shards=SHARDS,
        wav_root=WAV_ROOT,
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Writing the lines of {wildcards.split} with hints"
    script:
        "../workflow/scripts/hint_split.py"


rule hints:
    input:
        [DATA / f"hints/conversation/{split}.jsonl" for split in SPLITS],
    message:
        "Stage hints is whole"
