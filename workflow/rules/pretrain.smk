"""Pretraining: one job per run. The checkpoints are no output, so that they survive a failed or killed job."""


rule pretrain:
    input:
        manifest,
    output:
        encoder=RUN.encoder,
        summary=RUN.pretrained,
        history=RUN.history,
    log:
        RUN.pretrain_log,
    priority: precedence_of
    conda:
        CONDA
    threads: threads_of
    resources:
        processes=processes_of,
        nodes=nodes_of,
        gpu=placed("gpu"),
        gres=placed("gres"),
        mpi=placed("mpi"),
        tasks=placed("tasks"),
        tasks_per_gpu=placed("tasks_per_gpu"),
    params:
        spec=spec_json,
    shell:
        stage_command("pretrain", SETTINGS)
        + pretrain_flags(SETTINGS)
        + progress_flag(len(TRAINED), CORES, SETTINGS)
        + "--spec {params.spec:q} --out $(dirname {output.encoder:q}) --threads {threads} --processes {resources.processes} --nodes {resources.nodes} --log {log:q}"
