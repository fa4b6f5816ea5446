"""Fine-tuning Fun-ASR-Nano through FunASR's own trainer, which lives in an environment of its own."""
