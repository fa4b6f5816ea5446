# report: everything measured -> report.html


rule report:
    input:
        funnel=rules.funnel.output,
        conflicts=rules.glossary.output.conflicts,
        alignment=[] if CHUNKS["from_file"] else rules.align_summary.output,
        models=[DATA / "models" / backend for backend in [*BACKENDS, *SPEECH_LLMS]],
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
        # Where jobs run makes no other result: a change of it writes no report anew.
        config={name: value for name, value in config.items() if name != "cluster"},
    message:
        "Writing the report"
    script:
        "../workflow/scripts/report.py"
