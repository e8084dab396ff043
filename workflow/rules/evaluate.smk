"""Linear probe and 5-nn of every run, baselines included."""


def encoder_of(wildcards):
    """What an evaluation reads besides the data: nothing for the baselines, which have no training."""
    return [run_file("encoder.safetensors"), run_file("pretrain.json")] if spec_of(wildcards).trained else []


rule evaluate:
    input:
        manifest,
        encoder_of,
    output:
        run_file("result.json"),
    log:
        run_file("evaluate.log"),
    params:
        spec=spec_json,
    threads: share_of_cores(len(RUNS))
    resources:
        gpu=int(GPU),
    shell:
        "wmse evaluate --spec {params.spec:q} --preset {SETTINGS[preset]} --out $(dirname {output:q})"
        " {RUNTIME} --threads {threads} --log {log:q}"
