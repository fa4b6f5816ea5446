# What a call of Snakemake is to make, in a file for those who watch it: earmark status, tail, resume and resources.
from earmark.cluster.plan import (
    end_plan,
    planned_jobs,
    slurm_log_folder,
    slurm_run_name,
    write_plan,
)

PLAN = LOGS / "plan.json"


onstart:
    try:
        on_slurm = slurm_log_folder(workflow.executor_settings) is not None
        check_gpu_ids(config["train"], on_slurm=on_slurm)
    except EarmarkError as error:
        raise WorkflowError(str(error)) from None
    write_plan(
        PLAN,
        planned_jobs(workflow.dag),
        snakemake_log=log[0] if log else "",
        slurm_logs=slurm_log_folder(workflow.executor_settings),
        slurm_run=slurm_run_name(workflow.scheduler),
        elsewhere=workflow.overwrite_workdir is not None,
    )


onsuccess:
    end_plan(PLAN, "done")


onerror:
    end_plan(PLAN, "failed")
