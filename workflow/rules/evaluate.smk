"""Linear probe and 5-nn of every run, baselines included."""


rule evaluate:
    input:
        manifest,
        encoder_of,
    output:
        RUN.result,
    log:
        RUN.evaluate_log,
    priority: 1  # a result is of more use than the next training
    conda:
        CONDA
    threads: share_of_cores(len(RUNS), CORES, SETTINGS)
    resources:
        gpu=gpus_of,
    params:
        spec=spec_json,
    shell:
        stage_command("evaluate", SETTINGS)
        + progress_flag(len(RUNS), CORES, SETTINGS)
        + "--spec {params.spec:q} --out $(dirname {output:q}) --threads {threads} --log {log:q}"
