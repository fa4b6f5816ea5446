from snakemake.utils import min_version

min_version("9.27")


configfile: f"{workflow.basedir}/config.yaml"


include: "rules/common.smk"
include: "rules/plan.smk"
include: "rules/corpus.smk"
include: "rules/align.smk"
include: "rules/glossary.smk"
include: "rules/chunks.smk"
include: "rules/export.smk"
include: "rules/train.smk"
include: "rules/speech_llm.smk"
include: "rules/funasr_nano.smk"
include: "rules/index.smk"
include: "rules/folds.smk"
include: "rules/hints.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        DATA / "report.html",
        EXPORTS,
