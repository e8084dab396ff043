"""Data sets: found or downloaded, verified, converted."""


rule prepare:
    output:
        f"{DATA}/{{benchmark}}/prepared/manifest.json",
    log:
        f"{RESULTS}/logs/prepare/{{benchmark}}.log",
    params:
        offline="" if SETTINGS["download"] else "--no-download",
    shell:
        "wmse prepare {wildcards.benchmark} --data-root {DATA:q} {params.offline} --log {log:q}"
