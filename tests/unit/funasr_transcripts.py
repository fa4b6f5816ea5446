"""What FunASR's own inference says about audio, file by file. Run with the interpreter of its environment: JOB.json.

The job is {"model_dir", "audio": [path, …], "max_new_tokens", "texts": file to write}.
"""

import json
import sys
from pathlib import Path

from funasr import AutoModel

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
model = AutoModel(model=job["model_dir"], device="cpu", ncpu=1, disable_update=True, disable_pbar=True)
model.kwargs["frontend"].dither = 0.0
texts = [model.generate(input=[path], max_length=job["max_new_tokens"])[0]["text"] for path in job["audio"]]
Path(job["texts"]).write_text(json.dumps(texts), encoding="utf-8")
