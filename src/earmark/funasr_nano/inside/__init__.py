"""Programs that run in FunASR's environment, each a module with `main(job)`; `environment.run` starts them.

They import the standard library, torch, numpy, FunASR and what it brings, and of Earmark only what needs no more than
that. An EarmarkError that one raises reaches the log of the job as it is.
"""
