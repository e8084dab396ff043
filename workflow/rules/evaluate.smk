"""Linear probe and 5-nn of every run, baselines included."""


rule evaluate:
    input:
        manifest,
        encoder_of,
    output:
        run_file("result.json"),
    log:
        run_file("evaluate.log"),
    conda:
        "../../envs/wmse.yaml"
    threads: share_of_cores(len(RUNS))
    resources:
        gpu=int(GPU),
    params:
        spec=spec_json,
    shell:
        command("evaluate")
        + "--spec {params.spec:q} --out $(dirname {output:q}) --threads {threads} --log {log:q}"
