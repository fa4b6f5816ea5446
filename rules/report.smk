# report: everything measured -> report.html


rule report:
    input:
        funnel=rules.funnel.output,
        conflicts=rules.glossary.output.conflicts,
        alignment=[] if CHUNKS["from_file"] else rules.align_summary.output,
        models=[DATA / "models" / backend for backend in BACKENDS],
        metrics=[DATA / "evaluation" / name / "metrics.json" for name in EVALUATED],
        predictions=[
            DATA / "evaluation" / name / "predictions.parquet" for name in EVALUATED
        ],
    output:
        report=DATA / "report.html",
        config=DATA / "config.json",
    log:
        LOGS / "report.log",
    benchmark:
        LOGS / "benchmarks/report.tsv"
    threads: 1
    resources:
        **grows(mem_mb=1500, runtime_min=30),
    params:
        run_folder=DATA,
        shards=SHARDS,
        benchmarks=LOGS / "benchmarks",
        config=config,
    message:
        "Writing the report"
    script:
        "../workflow/scripts/report.py"
