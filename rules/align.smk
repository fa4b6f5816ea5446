# align: corpus/{shard}.parquet -> alignments/{shard}.parquet; summed up, and scored where true word times are known


ALIGN = config["align"]
ALIGN_SETTINGS = ALIGN[ALIGN["backend"]]
ALIGN_OUTPUTS = {"alignments": DATA / "alignments/{shard}.parquet"}
if ALIGN["backend"] == "mfa" and ALIGN_SETTINGS["keep_textgrids"]:
    ALIGN_OUTPUTS["textgrids"] = DATA / "alignments/textgrids/{shard}.tar"
ALIGN_TEXTGRIDS = []
# Those given as paths, so that a change of one is seen; a name is looked up by the aligner.
MFA_MODELS = [
    ALIGN_SETTINGS[name]
    for name in ("acoustic_model", "dictionary", "g2p_model")
    if ALIGN_SETTINGS.get(name) and Path(ALIGN_SETTINGS[name]).exists()
]

if ALIGN["backend"] == "textgrid":
    if ALIGN_SETTINGS["path"] is None:
        raise WorkflowError("align.backend is textgrid: set align.textgrid.path")
    ALIGN_TEXTGRIDS = DATA / "textgrids/{shard}.parquet"

    rule textgrids:
        input:
            textgrids=ALIGN_SETTINGS["path"],
            corpus=sharded("corpus"),
        output:
            shards=sharded("textgrids"),
            counts=DATA / "textgrids.json",
        log:
            LOGS / "textgrids.log",
        benchmark:
            LOGS / "benchmarks/textgrids.tsv"
        threads: 1
        resources:
            **grows(mem_mb=2000, runtime_min=240),
        message:
            "Dealing the TextGrids out to the shards"
        script:
            "../workflow/scripts/textgrids.py"


rule align_shard:
    input:
        corpus=DATA / "corpus/{shard}.parquet",
        lexicon=optional(ALIGN_SETTINGS.get("lexicon")),
        models=MFA_MODELS,
        textgrids=ALIGN_TEXTGRIDS,
    output:
        **ALIGN_OUTPUTS,
    log:
        LOGS / "align/{shard}.log",
    benchmark:
        LOGS / "benchmarks/align/{shard}.tsv"
    threads: ALIGN["threads"]
    resources:
        **grows(mem_mb=4000 if ALIGN["backend"] == "mfa" else 1500, runtime_min=240),
    params:
        backend=ALIGN["backend"],
        settings=ALIGN_SETTINGS,
        seed=config["seed"],
        max_differing_words=ALIGN["max_differing_words"],
        max_rejected_fraction=config["max_rejected_fraction"],
    message:
        "Aligning shard {wildcards.shard}"
    script:
        "../workflow/scripts/align_shard.py"


rule align_summary:
    input:
        alignments=sharded("alignments"),
        corpus=sharded("corpus"),
        reference=optional(ALIGN["reference"]),
    output:
        DATA / "evaluation/alignment.json",
    log:
        LOGS / "align_summary.log",
    benchmark:
        LOGS / "benchmarks/align_summary.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=60),
    message:
        "Summing up the alignment"
    script:
        "../workflow/scripts/align_summary.py"


rule align:
    input:
        sharded("alignments"),
        rules.align_summary.output,
    message:
        "Stage align is whole"
