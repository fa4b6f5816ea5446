"""A Fun-ASR-Nano too small to be good for anything, to run its whole chain without a model hub.

    .venv/bin/python benchmarks/tiny_fun_asr_nano.py data/demo_funasr/tiny_fun_asr_nano

writes a model directory as FunASR publishes them (config.yaml, configuration.json, model.pt and Qwen3-0.6B/ with a
tokenizer) of the real classes, with random weights: 1.5 million parameters in place of 985 million. The weights are
made in FunASR's environment (`make funasr`, or `--python`). A folder that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

QWEN3 = "Qwen3-0.6B"  # the published folder's name, whatever the size here

CONFIG = """\
# The published config.yaml with smaller numbers, and without the CTC decoder, whose weights are not published.
model: FunASRNano
model_conf:
  length_normalized_loss: true
audio_encoder: SenseVoiceEncoderSmall
audio_encoder_conf:
  output_size: 64
  attention_heads: 2
  linear_units: 128
  num_blocks: 2
  tp_blocks: 1
  dropout_rate: 0.1
  positional_dropout_rate: 0.1
  attention_dropout_rate: 0.1
  input_layer: pe
  pos_enc_class: SinusoidalPositionEncoder
  normalize_before: true
  kernel_size: 11
  sanm_shfit: 0
  selfattention_layer_type: sanm
  freeze: true
audio_adaptor: Transformer
audio_adaptor_conf:
  downsample_rate: 1
  use_low_frame_rate: true
  ffn_dim: 128
  llm_dim: {hidden_size}
  encoder_dim: 64
  n_layer: 1
  attention_heads: 4
  freeze: true
llm: Qwen3-0.6b
llm_conf:
  hub: hf
  freeze: true
  llm_dtype: fp32
  init_param_path: {qwen3}
  use_lora: false
frontend: WavFrontend
frontend_conf:
  fs: 16000
  window: hamming
  n_mels: 80
  frame_length: 25
  frame_shift: 10
  lfr_m: 7
  lfr_n: 6
  cmvn_file: null
tokenizer: HuggingfaceTokenizer
tokenizer_conf:
  init_param_path: {qwen3}
dataset: FunASR
dataset_conf:
  index_ds: FunASR
  batch_sampler: BatchSampler
  batch_type: token
  batch_size: 6000
  max_token_length: 3500
  shuffle: true
  num_workers: 4
  do_think: false
  retry: 100
train_conf:
  accum_grad: 1
  grad_clip: 5
  max_epoch: 2
  keep_nbest_models: 10
optim: adamw
optim_conf:
  lr: 0.0002
scheduler: warmuplr
scheduler_conf:
  warmup_steps: 100
"""


def write_folder(folder: Path, hidden_size: int, layers: int, seed: int) -> None:
    """All but model.pt; the language model's weights go to `folder`/qwen3.pt."""
    import torch
    from tiny_qwen3 import make_model, make_tokenizer

    (folder / QWEN3).mkdir(parents=True)
    tokenizer = make_tokenizer(folder / QWEN3)
    model = make_model(tokenizer, hidden_size, layers, seed)
    tokenizer.save_pretrained(folder / QWEN3)
    model.config.save_pretrained(folder / QWEN3)
    torch.save(model.state_dict(), folder / "qwen3.pt")
    (folder / "config.yaml").write_text(CONFIG.format(hidden_size=hidden_size, qwen3=QWEN3), encoding="utf-8")
    configuration = {
        "framework": "pytorch",
        "task": "auto-speech-recognition",
        "model": {"type": "funasr"},
        "pipeline": {"type": "funasr-pipeline"},
        "file_path_metas": {
            "init_param": "model.pt",
            "config": "config.yaml",
            "tokenizer_conf": {"init_param_path": QWEN3},
            "llm_conf": {"init_param_path": QWEN3},
        },
    }
    (folder / "configuration.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")


def write_weights(folder: Path, seed: int) -> None:
    """model.pt. Runs in FunASR's environment."""
    import torch
    from funasr import AutoModel

    model = AutoModel(model=str(folder), device="cpu", disable_update=True, seed=seed, init_param=None).model
    llm = torch.load(folder / "qwen3.pt", weights_only=True)
    model.llm.load_state_dict(llm, strict=True)
    torch.save({"state_dict": model.state_dict()}, folder / "model.pt")
    (folder / "qwen3.pt").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random Fun-ASR-Nano.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", type=Path, default=Path(".venv-funasr/bin/python"), help="default: %(default)s")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.weights:
        write_weights(arguments.folder, arguments.seed)
        return
    if (arguments.folder / "model.pt").exists():
        return
    from earmark.artifacts import atomic_folder

    with atomic_folder(arguments.folder) as folder:
        write_folder(folder, arguments.hidden_size, arguments.layers, arguments.seed)
        command = [str(arguments.python.absolute()), __file__, str(folder), "--weights", "--seed", str(arguments.seed)]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode:
            sys.exit(f"{made.stdout}\nno weights could be made with {arguments.python}; see above")


if __name__ == "__main__":
    main()
