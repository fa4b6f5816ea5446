"""What a Fun-ASR-Nano hears in audio files: greedily, batch by batch. Runs in FunASR's environment."""

from __future__ import annotations

import itertools
import json
import logging
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from earmark.errors import EarmarkError
from earmark.funasr_nano.inside.guards import check_safe
from earmark.funasr_nano.settings import check_no_foreign_code

log = logging.getLogger(__name__)

_TOLD_EVERY_S = 60.0
_SHOWN = 3  # of keys that a checkpoint lacks


def main(job: Mapping[str, Any]) -> None:
    """Write an answer to each question: JSON lines of {id, text, finished, seconds} or {id, error}.

    `job`: model_dir; weights, the file in FunASR's format; questions, JSON lines of {id, messages} whose last message
    is the user's; answers, the file to write; batch_size, max_new_tokens, threads. EarmarkError if the weights are not
    those of the model.
    """
    transcriber = Transcriber(job["model_dir"], job["weights"], job["max_new_tokens"], job["threads"])
    done, told = 0, time.monotonic()
    with Path(job["answers"]).open("w", encoding="utf-8") as answers:
        for batch in _batches(Path(job["questions"]), job["batch_size"]):
            for answer in transcriber.answers(batch):
                answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
            done += len(batch)
            if time.monotonic() - told >= _TOLD_EVERY_S:
                told = time.monotonic()
                log.info("%d transcribed", done)


class Transcriber:
    """A loaded model. On the GPU where there is one; numbers are fp32, as FunASR's own inference has them."""

    def __init__(self, model_dir: str, weights: str, max_new_tokens: int, threads: int):
        from funasr import AutoModel

        _check_folder(Path(model_dir))
        check_safe(Path(weights))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = AutoModel(
            model=model_dir, init_param=weights, device=device, ncpu=threads, disable_update=True, disable_pbar=True,
            trust_remote_code=False,  # said here, or the model's own configuration is asked
        )  # fmt: skip
        self.model = loaded.model.eval()
        _check_loaded(self.model, Path(weights))
        self.model.llm = self.model.llm.float()
        self.conf = {name: value for name, value in loaded.kwargs.items() if name not in ("tokenizer", "frontend")}
        self.tokenizer, self.frontend = loaded.kwargs["tokenizer"], loaded.kwargs["frontend"]
        self.frontend.dither = 0.0  # noise of one 16-bit step, drawn anew each time: the same audio would differ
        self.max_new_tokens = max_new_tokens
        self.failed = False

    def answers(self, questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answer to each question, or the error that it ran into."""
        begun = time.perf_counter()
        prompts: dict[int, torch.Tensor] = {}
        answers: dict[int, dict[str, Any]] = {}
        for question in questions:
            try:
                prompts[question["id"]] = self._prompt(question["messages"])
            except ImportError as error:  # FunASR imports what computes features when the first one is wanted
                told = f"FunASR's environment lacks a package ({error}); make it anew with `make funasr`"
                raise EarmarkError(told) from None
            except Exception as error:  # FunASR's loading and features fail in many ways, each one line's own
                _raise_if_poisoned(error)
                answers[question["id"]] = self._error(question["id"], error)
        answers |= self._generated(prompts)
        share_s = (time.perf_counter() - begun) / max(1, len(questions))
        return [{"id": row["id"], **answers[row["id"]], "seconds": share_s} for row in questions]

    def _prompt(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """embeddings[L, D] of all that comes before the answer."""
        # FunASR wants an answer in every conversation; it is not part of what it embeds here.
        asked = [*messages, {"role": "assistant", "content": "null"}]
        with torch.inference_mode():
            embeddings, *_ = self.model.inference_prepare(
                [asked], None, [""], self.tokenizer, self.frontend, **self.conf
            )
        return embeddings[0].float()

    def _generated(self, prompts: Mapping[int, torch.Tensor]) -> dict[int, dict[str, Any]]:
        if not prompts:
            return {}
        try:
            return dict(zip(prompts, self._generate(list(prompts.values())), strict=True))
        except Exception as error:  # of memory, for one: alone, most of them will do
            _raise_if_poisoned(error)
            if len(prompts) == 1:
                return {row_id: self._error(row_id, error) for row_id in prompts}
            log.warning("a batch of %d failed (%s); its lines are tried one by one", len(prompts), error)
        answers: dict[int, dict[str, Any]] = {}
        for row_id, prompt in prompts.items():
            answers |= self._generated({row_id: prompt})
        return answers

    def _generate(self, prompts: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """The likeliest continuation of each of prompts[L, D], padded on the left."""
        longest = max(map(len, prompts))
        embeddings = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
        mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeddings.device)
        for row, prompt in enumerate(prompts):
            embeddings[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        llm = self.model.llm
        ends = llm.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        with torch.inference_mode():
            said = llm.generate(
                inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=self.max_new_tokens, do_sample=False,
                num_beams=1, eos_token_id=ends, pad_token_id=ends[0],
            )  # fmt: skip
        texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            {"text": _cleaned(text), "finished": any(token in ends for token in ids)}
            for text, ids in zip(texts, said.tolist(), strict=True)
        ]

    def _error(self, row_id: int, error: Exception) -> dict[str, Any]:
        if not self.failed:  # one traceback tells a defect from bad audio; thousands would hide the log
            self.failed = True
            log.warning("question %d cannot be transcribed: %s", row_id, traceback.format_exc())
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _cleaned(text: str) -> str:
    """As FunASR cleans what its models say."""
    return re.sub(r"\s+", " ", text.replace("/sil", " ")).strip()


def _check_folder(folder: Path) -> None:
    """ConfigError if the configuration that FunASR reads in a model folder would run code of the model's own."""
    said = json.loads((folder / "configuration.json").read_text(encoding="utf-8"))
    check_no_foreign_code(said)
    name = said.get("file_path_metas", {}).get("config", "config.yaml")
    check_no_foreign_code(OmegaConf.to_container(OmegaConf.load(folder / name), resolve=True))


def _raise_if_poisoned(error: Exception) -> None:
    """Raise an error of the GPU after which nothing works in this process; too little memory is none."""
    if isinstance(error, torch.OutOfMemoryError):
        return
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error):
        raise EarmarkError(
            f"the GPU failed ({' '.join(str(error).split())[:200]}), and nothing that comes after it in this process "
            "would be right; run it again, on another GPU if it fails there too"
        ) from error


def _check_loaded(model: torch.nn.Module, weights: Path) -> None:
    """EarmarkError if the file lacks weights of the model: FunASR only prints their names, and leaves them random."""
    held = torch.load(weights, map_location="meta", weights_only=True)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        held = held.get(wrapper, held)
    held = {name.removeprefix("module."): value for name, value in held.items()}
    wanted = model.state_dict()
    lacking = sorted(name for name in wanted if name not in held or held[name].shape != wanted[name].shape)
    if lacking:
        raise EarmarkError(
            f"{weights}: lacks {len(lacking)} of the model's {len(wanted)} weights, or has them in another shape "
            f"({', '.join(lacking[:_SHOWN])} …); it is of another configuration than the config.yaml beside it"
        )


def _batches(questions: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    with questions.open(encoding="utf-8") as file:
        rows = map(json.loads, file)
        while batch := list(itertools.islice(rows, size)):
            yield batch
