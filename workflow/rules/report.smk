"""Tables, verdicts, plots and a page of them all from result files alone; and a figure of this workflow."""


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
        runs=result_folders,
        out=lambda wildcards: RESULTS,
    shell:
        report_command("tables")


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
        runs=result_folders,
        out=lambda wildcards: RESULTS,
    shell:
        report_command("claims")


rule plots:
    input:
        results=RESULT_FILES,
        histories=HISTORIES,
    output:
        [figure(name) for name in FIGURES],
    log:
        f"{RESULTS}/logs/plots.log",
    conda:
        CONDA
    params:
        runs=result_folders,
        out=lambda wildcards: RESULTS,
    shell:
        report_command("plots")


rule page:
    input:
        results=RESULT_FILES,
        histories=HISTORIES,
        dag=f"{RESULTS}/plots/dag.png",
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/page.log",
    conda:
        CONDA
    params:
        runs=result_folders,
        out=lambda wildcards: RESULTS,
    shell:
        report_command("page")


rule dag:
    output:
        figure("dag"),
    log:
        f"{RESULTS}/logs/dag.log",
    conda:
        CONDA
    params:
        snakefile=workflow.main_snakefile,
        config=rule_graph_config(config, SETTINGS["preset"]),
        jobs=json.dumps(
            {
                "prepare": len(set(BENCHMARKS) - PROJECT.folders.keys()),
                "prepare_folder": len(PROJECT.folders),
                "pretrain": len(TRAINED),
                "evaluate": len(RUNS),
            }
        ),
        out=lambda wildcards: RESULTS,
    shell:
        "snakemake --snakefile {params.snakefile:q} --cores 1 --rulegraph --config {params.config:q} 2> {log:q}"
        " | wmse dag --jobs {params.jobs:q} --out {params.out:q} --log {log:q}"
