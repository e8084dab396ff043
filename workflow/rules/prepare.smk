"""Data sets: found or downloaded, verified, converted."""


rule prepare:
    output:
        f"{DATA}/{{benchmark}}/prepared/manifest.json",
    log:
        f"{RESULTS}/logs/prepare/{{benchmark}}.log",
    conda:
        CONDA
    params:
        data_root=lambda wildcards, output: Path(output[0]).parents[2],
        folder=folder_of,
        state=state_of,
        offline="" if SETTINGS["download"] else "--no-download",
    shell:
        "exec wmse prepare {wildcards.benchmark} --data-root {params.data_root:q} --folder {params.folder:q} {params.offline} --log {log:q} "
        + PLUGINS
