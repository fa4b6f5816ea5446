"""Fine-tuning speech language models that do not blow up.

`whisper_qwen3` (Whisper's encoder, a projector and Qwen3) and `qwen2_audio`, by way of Transformers' Trainer and PEFT:

    conversations -> labels -> batches -> model (clip_encoder, projector, Qwen3) -> trainer (stability) -> saved
                                          qwen2_audio (adapters)

One process: `earmark finetune ...`; several: `torchrun --nproc_per_node N -m earmark.speech_llm ...`.
"""
