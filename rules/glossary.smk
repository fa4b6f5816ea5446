# glossary: term and alias files -> glossary/


rule glossary:
    input:
        terms=config["glossary"]["terms"],
        aliases=config["glossary"]["aliases"],
    output:
        glossary=DATA / "glossary/glossary.json",
        alt2main=DATA / "glossary/alt2main.json",
        conflicts=DATA / "glossary/conflicts.jsonl",
    log:
        LOGS / "glossary.log",
    benchmark:
        LOGS / "benchmarks/glossary.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=30),
    message:
        "Merging the glossary"
    script:
        "../workflow/scripts/glossary.py"
