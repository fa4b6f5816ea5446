# align: corpus/{shard}.parquet -> alignments/{shard}.parquet; scored where true word times are known


ALIGN = config["align"]
ALIGN_SETTINGS = ALIGN[ALIGN["backend"]]
ALIGN_OUTPUTS = {"alignments": DATA / "alignments/{shard}.parquet"}
if ALIGN["backend"] == "mfa" and ALIGN_SETTINGS["keep_textgrids"]:
    ALIGN_OUTPUTS["textgrids"] = DATA / "alignments/textgrids/{shard}.tar"
ALIGN_TEXTGRIDS = []

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
        textgrids=ALIGN_TEXTGRIDS,
    output:
        **ALIGN_OUTPUTS,
    log:
        LOGS / "align/{shard}.log",
    benchmark:
        LOGS / "benchmarks/align/{shard}.tsv"
    threads: ALIGN["threads"]
    resources:
        **grows(mem_mb=1500, runtime_min=240),
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


ALIGN_ACCURACY = (
    [DATA / "evaluation/alignment.json"] if config["align"]["reference"] else []
)

if ALIGN_ACCURACY:

    rule align_accuracy:
        input:
            alignments=sharded("alignments"),
            corpus=sharded("corpus"),
            reference=config["align"]["reference"],
        output:
            DATA / "evaluation/alignment.json",
        log:
            LOGS / "align_accuracy.log",
        benchmark:
            LOGS / "benchmarks/align_accuracy.tsv"
        threads: 1
        resources:
            **grows(mem_mb=2000, runtime_min=30),
        message:
            "Scoring the alignment against known word times"
        script:
            "../workflow/scripts/align_accuracy.py"


rule align:
    input:
        sharded("alignments"),
        ALIGN_ACCURACY,
    message:
        "Stage align is whole"
