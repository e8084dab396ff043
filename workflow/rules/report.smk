"""Tables, verdicts and plots from result files alone; and a figure of this workflow."""


rule tables:
    input:
        results=RESULT_FILES,
    output:
        report(
            f"{RESULTS}/tables.md", caption="../report/tables.rst", category="Tables"
        ),
    log:
        f"{RESULTS}/logs/tables.log",
    conda:
        CONDA
    params:
        runs=lambda wildcards, input: folders(input.results),
        out=lambda wildcards, output: Path(output[0]).parent,
    shell:
        f"wmse report --only tables --data-root {shlex.quote(DATA)}"
        " --out {params.out:q} --log {log:q} {params.runs:q}"


rule claims:
    input:
        results=RESULT_FILES,
        histories=HISTORIES,
    output:
        report(
            f"{RESULTS}/claims.md", caption="../report/claims.rst", category="Tables"
        ),
    log:
        f"{RESULTS}/logs/claims.log",
    conda:
        CONDA
    params:
        runs=lambda wildcards, input: folders(input.results),
        out=lambda wildcards, output: Path(output[0]).parent,
    shell:
        f"wmse report --only claims --data-root {shlex.quote(DATA)}"
        " --out {params.out:q} --log {log:q} {params.runs:q}"


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
            f"{RESULTS}/plots/dynamics.png",
            caption="../report/dynamics.rst",
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
        report(
            f"{RESULTS}/plots/time.png",
            caption="../report/time.rst",
            category="Plots",
        ),
    log:
        f"{RESULTS}/logs/plots.log",
    conda:
        CONDA
    params:
        runs=lambda wildcards, input: folders(input.results),
        out=lambda wildcards, output: Path(output[0]).parents[1],
    shell:
        f"wmse report --only plots --data-root {shlex.quote(DATA)}"
        " --out {params.out:q} --log {log:q} {params.runs:q}"


rule dag:
    output:
        report(
            f"{RESULTS}/plots/dag.png", caption="../report/dag.rst", category="Plots"
        ),
    log:
        f"{RESULTS}/logs/dag.log",
    conda:
        CONDA
    params:
        snakefile=workflow.main_snakefile,
        config=rule_graph_config(config, SETTINGS["preset"]),
        jobs=json.dumps(
            {
                "prepare": len(BENCHMARKS),
                "pretrain": len(TRAINED),
                "evaluate": len(RUNS),
            }
        ),
        out=lambda wildcards, output: Path(output[0]).parents[1],
    shell:
        "snakemake --snakefile {params.snakefile:q} --cores 1 --rulegraph --config {params.config:q} 2> {log:q}"
        " | wmse dag --jobs {params.jobs:q} --out {params.out:q} --log {log:q}"
