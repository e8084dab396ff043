"""Tables and plots, from result files alone."""

RESULT_FILES = [f"{RESULTS}/runs/{run}/result.json" for run in RUNS]
HISTORIES = [f"{RESULTS}/runs/{run}/history.csv" for run in TRAINED]


rule tables:
    input:
        RESULT_FILES,
    output:
        report(f"{RESULTS}/tables.md", caption="../report/tables.rst", category="Tables"),
    log:
        f"{RESULTS}/logs/tables.log",
    params:
        runs=[f"{RESULTS}/runs/{run}" for run in RUNS],
    shell:
        "wmse report --only tables --out {RESULTS:q} {params.runs:q} --log {log:q}"


rule plots:
    input:
        RESULT_FILES,
        HISTORIES,
    output:
        report(f"{RESULTS}/plots/training.png", caption="../report/training.rst", category="Plots"),
        report(f"{RESULTS}/plots/accuracy.png", caption="../report/accuracy.rst", category="Plots"),
        report(f"{RESULTS}/plots/collapse.png", caption="../report/collapse.rst", category="Plots"),
    log:
        f"{RESULTS}/logs/plots.log",
    params:
        runs=[f"{RESULTS}/runs/{run}" for run in RUNS],
    shell:
        "wmse report --only plots --out {RESULTS:q} {params.runs:q} --log {log:q}"
