"""Stage export: training files for other programs, and the wavs they name."""
