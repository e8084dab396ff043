"""From the configuration to the runs: recipes, presets, overrides, validation and the hash of a run.

A *cell* is a benchmark and a method label, written ``cifar10/wmse-4`` (``@variant`` may follow). A *run* is a cell and
a seed; everything that decides its result is in its `RunSpec`, and nothing else is. Settings that decide only how
fast it goes (device, threads, memory format) are no part of it, so results stay valid across machines.
"""

from wmse.config.own import describe_recipe
from wmse.config.plugins import add_plugin, owner, plugins
from wmse.config.project import Project, load_project, make_label, make_spec, paper_differences
from wmse.config.recipes import (
    baselines,
    benchmarks,
    experiments,
    in_paper,
    method_class,
    of_package,
    paper_parameters,
    paper_table,
    paper_variants,
    parse_label,
    recipes,
    title_of,
    trained_methods,
)
from wmse.config.spec import DIGITS, IDENTITY, SPEC_VERSION, RunSpec
from wmse.config.yaml_io import read_yaml
from wmse.errors import shorten, show, unknown
