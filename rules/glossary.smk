# glossary: term and alias files -> glossary/


rule glossary:
    input:
        terms=config["glossary"]["terms"],
        aliases=config["glossary"]["aliases"],
        blacklist=optional(config["glossary"]["blacklist"]),
    output:
        glossary=DATA / "glossary/glossary.json",
        alt2main=DATA / "glossary/alt2main.json",
        ambiguous=DATA / "glossary/ambiguous_aliases.json",
        dropped=DATA / "glossary/dropped_aliases.json",
        conflicts=DATA / "glossary/conflicts.jsonl",
    log:
        LOGS / "glossary.log",
    benchmark:
        LOGS / "benchmarks/glossary.tsv"
    threads: 1
    resources:
        **grows(mem_mb=2000, runtime_min=30),
    params:
        filters=config["glossary"]["filters"],
        ambiguous_aliases=config["glossary"]["ambiguous_aliases"],
        language=config["corpus"]["language"],
    message:
        "Merging the glossary"
    script:
        "../workflow/scripts/glossary.py"
