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
    conda:
        CONDA
    threads: threads_of
    resources:
        gpu=lambda wildcards: gpus_of(wildcards) * processes_of(wildcards),
        processes=processes_of,
    params:
        spec=spec_json,
    shell:
        stage_command("pretrain", SETTINGS)
        + pretrain_flags(len(TRAINED), CORES, SETTINGS)
        + "--spec {params.spec:q} --out $(dirname {output.encoder:q}) --threads {threads} --processes {resources.processes} --log {log:q}"
