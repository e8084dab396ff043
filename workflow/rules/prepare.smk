"""Data sets: found or downloaded, verified, converted.

No `params`: changing them would prepare a data set again, and Snakemake then plans nothing of what needs it.
"""


rule prepare:
    output:
        f"{DATA}/{{benchmark}}/prepared/manifest.json",
    log:
        f"{RESULTS}/logs/prepare/{{benchmark}}.log",
    priority: 1  # or the first data set's long trainings would keep the others waiting
    conda:
        CONDA
    shell:
        prepare_command(PROJECT) + "{wildcards.benchmark} --log {log:q}"


# The digest is in the file's name: for what the folder holds now there is another file.
rule prepare_folder:
    output:
        f"{DATA}/{{benchmark}}/prepared/folder-{{digest}}.json",
    log:
        f"{RESULTS}/logs/prepare/{{benchmark}}-{{digest}}.log",
    priority: 1
    conda:
        CONDA
    shell:
        prepare_command(PROJECT) + "{wildcards.benchmark} --log {log:q}"
