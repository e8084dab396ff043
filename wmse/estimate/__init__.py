"""What a configuration costs on this machine, before anyone starts it: views, hours and energy of every run.

Counts are exact: they follow from the specification (`plan`). Times come from a short warm-up of the project's own
functions on synthetic images (`warm_up`), one for each distinct cost: runs that differ in seed, epochs or learning rate
take the same time a step. What takes too long whole is measured in part and scaled linearly.
"""

from wmse.estimate.table import as_table, estimate_runs, notes, total
from wmse.estimate.warm_up import WarmUp

__all__ = ["WarmUp", "as_table", "estimate_runs", "notes", "total"]
