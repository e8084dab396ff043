"""Tables and plots, from result files alone."""


rule tables:
    input:
        results=RESULT_FILES,
    output:
        report(
            f"{RESULTS}/tables.md", caption="../report/tables.rst", category="Tables"
        ),
    log:
        f"{RESULTS}/logs/tables.log",
    params:
        runs=lambda wildcards, input: folders(input.results),
        out=lambda wildcards, output: Path(output[0]).parent,
    shell:
        "wmse report --only tables --out {params.out:q} --log {log:q} {params.runs:q}"


rule plots:
    input:
        results=RESULT_FILES,
        histories=HISTORIES,
    output:
        report(
            f"{RESULTS}/plots/training.png",
            caption="../report/training.rst",
            category="Plots",
        ),
        report(
            f"{RESULTS}/plots/accuracy.png",
            caption="../report/accuracy.rst",
            category="Plots",
        ),
        report(
            f"{RESULTS}/plots/collapse.png",
            caption="../report/collapse.rst",
            category="Plots",
        ),
    log:
        f"{RESULTS}/logs/plots.log",
    params:
        runs=lambda wildcards, input: folders(input.results),
        out=lambda wildcards, output: Path(output[0]).parents[1],
    shell:
        "wmse report --only plots --out {params.out:q} --log {log:q} {params.runs:q}"
