"""Fetch a model by its hub id: from Hugging Face, and where that fails from ModelScope.

job: hub_id, revision (None: the newest), result (a path). Writes the folder that the model was fetched into to
`result`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from earmark.errors import InputError

log = logging.getLogger(__name__)


def main(job: dict[str, Any]) -> None:
    hub_id, revision = job["hub_id"], job.get("revision")
    told = []
    for name, fetch in (("Hugging Face", _from_hugging_face), ("ModelScope", _from_modelscope)):
        try:
            folder = fetch(hub_id, revision)
        except Exception as error:  # each hub's client has errors of its own, and its network library's
            told.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        # Hugging Face names the folder by the commit.
        log.info("%s, revision %s: fetched from %s into %s", hub_id, revision or "the newest", name, folder)
        Path(job["result"]).write_text(str(folder), encoding="utf-8")
        return
    raise InputError(
        f"{hub_id}: could not be fetched ({'; '.join(told)}). Where there is no network, fetch it elsewhere (`hf "
        f"download {hub_id} --local-dir FOLDER`, or `modelscope download --model {hub_id} --local_dir FOLDER`), copy "
        "the folder here, and set funasr_nano.model_dir to it"
    )


def _from_hugging_face(hub_id: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(hub_id, revision=revision)


def _from_modelscope(hub_id: str, revision: str | None) -> str:
    from modelscope import snapshot_download

    return snapshot_download(hub_id, revision=revision)
