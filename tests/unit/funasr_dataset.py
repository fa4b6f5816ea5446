"""Which lines the installed FunASR trains on. Run with the interpreter of its environment: CASES.json ANSWERS.json.

A case is {"lines": file, "tokenizer": folder, "dataset_conf": …}; its answer {"kept": [key, …], "batches": [[given,
taken], …]}: a line is kept if the index has it, a batch holds it, and the dataset does not put another in its place;
of each batch the lines given to FunASR's collator, and those that it took.
"""

import json
import logging
import sys
from pathlib import Path

import funasr.datasets.audio_datasets.samplers
import funasr.datasets.fun_asr_datasets.datasets  # noqa: F401 (both put their classes into the tables)
from funasr.frontends.wav_frontend import WavFrontend
from funasr.register import tables
from funasr.tokenizer.hf_tokenizer import HuggingfaceTokenizer

logging.disable(logging.CRITICAL)
frontend = WavFrontend(fs=16000, n_mels=80, lfr_m=7, lfr_n=6)


def answer(case):
    conf = case["dataset_conf"]
    dataset = tables.dataset_classes["FunASR"](
        case["lines"], frontend=frontend, tokenizer=HuggingfaceTokenizer(case["tokenizer"]), is_training=True, **conf
    )
    sampler = tables.batch_sampler_classes["BatchSampler"](dataset, **conf)["batch_sampler"]
    batches = list(sampler)
    kept, taken = [], []
    for batch in batches:
        samples = [dataset[index] for index in batch]
        rows = [dataset.index_ds.contents[index] for index in batch]
        own = (row for row, sample in zip(rows, samples, strict=True) if sample is not None and sample["item"] is row)
        kept += [row["key"] for row in own]
        taken.append([len(batch), len(dataset.collator(samples)["speech_lengths"])])
    return {"kept": sorted(kept), "batches": taken}


answers = [answer(case) for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
