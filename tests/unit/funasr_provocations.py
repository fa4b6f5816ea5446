"""Runs in FunASR's environment: trainings that go wrong in one way each, in one process. Prints what each ended with.

    python funasr_provocations.py JOBS.json RESULTS.json

JOBS.json: {name: job}, as `earmark.funasr_nano.inside.train` is given, or `.check` where it has the key conf; a
provocation's own part is below; a job may say `kill_in_batch`. RESULTS.json: {name: [exception, message, {file: digest
of the weights in it}]}, and under "trained" {name: lengths of audio in each batch}.
"""

import hashlib
import json
import logging
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
from funasr.bin import train_ds
from funasr.models.fun_asr_nano.model import FunASRNano

from earmark.funasr_nano.inside import check, guards, train
from earmark.funasr_nano.inside.trainer import GuardedTrainer


def unfrozen_encoder(undo):
    """As if a FunASR forgot to freeze: the encoder trains, whatever the configuration says."""
    original = FunASRNano.__init__

    def forgetful(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.audio_encoder.requires_grad_(True)

    FunASRNano.__init__ = forgetful
    undo.append(lambda: setattr(FunASRNano, "__init__", original))


def lora_ignored(undo):
    """As in FunASR before 1.4.1: use_lora is read by nobody."""
    original = FunASRNano._apply_lora_to_llm
    FunASRNano._apply_lora_to_llm = lambda self, conf: None
    undo.append(lambda: setattr(FunASRNano, "_apply_lora_to_llm", original))


def fp16_unaudited(undo):
    """Adapters in float16, which become NaN by themselves."""
    original = guards.audit
    guards.audit = lambda model, trained: {"parts": {}}
    undo.append(lambda: setattr(guards, "audit", original))


def fp16_unwatched(undo):
    """The same, and nobody looks at losses and gradients: left is the look at what is to be saved."""
    fp16_unaudited(undo)
    for name in ("forward_step", "update_step", "validate_epoch"):
        undo.append(partial(setattr, GuardedTrainer, name, getattr(GuardedTrainer, name)))
        delattr(GuardedTrainer, name)


def nan_gradients(undo):
    """Gradients overflow while the loss stays finite."""
    original = FunASRNano.forward

    def steep(self, *args, **kwargs):
        loss, stats, weight = original(self, *args, **kwargs)
        if self.training:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss, stats, weight

    FunASRNano.forward = steep
    undo.append(lambda: setattr(FunASRNano, "forward", original))


def nan_saved(undo):
    """A file is spoilt after it was written."""
    original = train_ds.average_checkpoints

    def spoil(folder, *args, **kwargs):
        path = Path(folder, "model.pt.ep1")
        state = torch.load(path, weights_only=True)
        next(v for k, v in state["state_dict"].items() if guards.is_lora(k)).view(-1)[0] = float("nan")
        torch.save(state, path)

    train_ds.average_checkpoints = spoil
    undo.append(lambda: setattr(train_ds, "average_checkpoints", original))


class Killed(BaseException):
    """What nothing catches, as a kill."""


def killed(undo):
    """In the second epoch, in the middle of writing model.pt, with model.pt.ep2 written and model.pt.best not."""
    original = torch.save

    def torn(saved, path, *args, **kwargs):
        original(saved, path, *args, **kwargs)
        if saved.get("epoch") == 2 and Path(path).name.startswith("model.pt.writing"):
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            raise Killed

    torch.save = torn
    undo.append(lambda: setattr(torch, "save", original))


def killed_in(batch):
    """A training that ends as a kill ends it, in a batch counted from the first."""
    original = GuardedTrainer.forward_step

    def forward_step(self, model, *args, **kwargs):
        if model.training and self.batch_total == batch:
            raise Killed
        original(self, model, *args, **kwargs)

    GuardedTrainer.forward_step = forward_step
    return lambda: setattr(GuardedTrainer, "forward_step", original)


def recorded(trained):
    """Writes down the lengths of audio in each batch that is trained on."""
    original = FunASRNano.forward

    def forward(self, *args, **kwargs):
        if self.training:
            trained.append(kwargs["speech_lengths"].flatten().tolist())
        return original(self, *args, **kwargs)

    FunASRNano.forward = forward
    return lambda: setattr(FunASRNano, "forward", original)


def digests(folder):
    return {path.name: digest(path) for path in sorted(folder.glob("model.pt*"))}


def digest(path):
    try:
        weights = torch.load(path, weights_only=True)["state_dict"]
    except Exception:
        return "torn"
    whole = hashlib.sha256()
    for name in sorted(weights):
        whole.update(name.encode() + weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def main():
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    results = {"trained": {}}
    for name, job in json.loads(Path(sys.argv[1]).read_text()).items():
        undo = [recorded(results["trained"].setdefault(name, []))]
        if "kill_in_batch" in job:
            undo.append(killed_in(job["kill_in_batch"]))
        if provoke := globals().get(name):
            provoke(undo)
        try:
            if "conf" in job:
                check.main(job)
            else:
                Path(job["kwargs"]["output_dir"]).mkdir(exist_ok=True)
                train.main(job)
            results[name] = ["ended well", ""]
        except (Exception, Killed) as error:
            traceback.print_exc()
            results[name] = [type(error).__name__, str(error)]
        finally:
            for step in reversed(undo):
                step()
        results[name].append({} if "conf" in job else digests(Path(job["kwargs"]["output_dir"])))
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
