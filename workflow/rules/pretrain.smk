"""Pretraining: one job per run. The checkpoints are no output, so that they survive a failed or killed job."""


rule pretrain:
    input:
        manifest,
    output:
        encoder=run_file("encoder.safetensors"),
        summary=run_file("pretrain.json"),
        history=run_file("history.csv"),
    log:
        run_file("pretrain.log"),
    conda:
        "../../envs/wmse.yaml"
    threads: pretrain_threads
    resources:
        gpu=int(GPU),
    params:
        spec=spec_json,
    shell:
        command("pretrain", PRETRAIN_FLAGS)
        + "--spec {params.spec:q} --out $(dirname {output.encoder:q}) --threads {threads} --log {log:q}"
