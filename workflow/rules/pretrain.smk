"""Pretraining: one job per run. The checkpoint is no output, so that it survives a failed or killed job."""


rule pretrain:
    input:
        manifest,
    output:
        encoder=run_file("encoder.safetensors"),
        summary=run_file("pretrain.json"),
        history=run_file("history.csv"),
    log:
        run_file("pretrain.log"),
    params:
        spec=spec_json,
    threads: pretrain_threads
    resources:
        gpu=int(GPU),
    shell:
        "wmse pretrain --spec {params.spec:q} --preset {SETTINGS[preset]} --out $(dirname {output.encoder:q})"
        " {RUNTIME} --threads {threads} --checkpoint-minutes {SETTINGS[checkpoint_minutes]} --log {log:q}"
