"""The processes of one run on this host: copies of a command that meet each other (torch.distributed.elastic).

On several hosts of a Slurm job, `srun` starts the same command once on each.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

from torch.distributed import DistNetworkError, TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, start_processes

from wmse.distributed.world import GONE, OURS
from wmse.errors import LOST_EXIT, STOPPED_EXIT, ConfigError
from wmse.training.signals import stop_on_signals

FIRST_PORT, PORTS = 20_000, 10_000  # Where the first host listens, by the job's number: below the ports of clients.


def launch(arguments: Sequence[str], processes: int, nodes: int, threads: int, say: Callable[[str], None]) -> int:
    """Run `wmse ARGUMENTS` as this host's processes of one run; returns the exit status of them all.

    A signal to stop is passed on to all of them. `say` gets a line when one has died without a word.

    Args:
        processes: on all hosts together.
        nodes: the number of hosts. In a Slurm job, but in none of its steps, this process becomes the `srun` that
            starts the command on each of them.
        threads: of all processes on this host.
    """
    if nodes > 1 and "SLURM_STEP_NUM_TASKS" not in os.environ:
        _start_on_every_host(arguments, nodes, threads)
    logging.disable()  # the launcher's account of what each process has reported itself
    node, address, port = meeting_place(nodes, os.environ)
    here = processes // nodes
    if node == 0:
        store = _listen(address, port)
        port = store.port
    every = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(here),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": OURS,
        "OMP_NUM_THREADS": str(max(1, threads // here)),
        **({"GLOO_SOCKET_IFNAME": "lo"} if nodes == 1 else {}),
    }
    with tempfile.TemporaryDirectory(prefix="wmse-launch-") as folder:
        context = start_processes(
            OURS,
            sys.executable,
            dict.fromkeys(range(here), ("-m", "wmse", *arguments)),
            {rank: {**every, "RANK": str(node * here + rank), "LOCAL_RANK": str(rank)} for rank in range(here)},
            DefaultLogsSpecs(log_dir=folder),
        )
        with stop_on_signals() as received:
            ends = _wait(context, received)
    return _status({node * here + rank: end for rank, end in ends.items()}, received, say)


def meeting_place(nodes: int, environment: Mapping[str, str]) -> tuple[int, str, int]:
    """This host's number among `nodes` hosts, and the address and port at which the first one listens (0: any).

    MASTER_ADDR and MASTER_PORT, where they are set, overrule what srun and the job's number say.

    Raises ConfigError: this step of Slurm has not one task on each of so many hosts.
    """
    if nodes == 1:
        return 0, "127.0.0.1", 0
    hosts, tasks = (environment[f"SLURM_STEP_NUM_{name}"] for name in ("NODES", "TASKS"))
    if not hosts == tasks == str(nodes):
        raise ConfigError(
            f"nodes: {nodes} of them need one task on each; this step of Slurm has {tasks} tasks on {hosts} nodes: "
            "give the command to the job without `srun`, which it calls itself"
        )
    address = environment.get("MASTER_ADDR") or environment["SLURM_LAUNCH_NODE_IPADDR"]
    port = environment.get("MASTER_PORT") or FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS
    return int(environment["SLURM_NODEID"]), address, int(port)


def _start_on_every_host(arguments: Sequence[str], nodes: int, threads: int) -> NoReturn:
    if "SLURM_JOB_ID" not in os.environ:
        raise ConfigError(f"nodes: {nodes} of them need a job of Slurm with so many nodes; this is none")
    one_each = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={threads}"]
    os.execvp("srun", ["srun", *one_each, sys.executable, "-m", "wmse", *arguments])


def _listen(address: str, port: int) -> TCPStore:
    try:
        return TCPStore(address, port, is_master=True, wait_for_workers=False)
    except DistNetworkError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"nodes: cannot listen at {address}, port {port} ({reason}): set MASTER_PORT") from None


def _wait(context: PContext, received: Collection[int]) -> dict[int, int]:
    """The exit status of every process that failed; once one has, the others are ended."""
    asked = False
    while not (result := context.wait(timeout=0.5, period=0.1)):
        if received and not asked:
            asked = True
            for process in context.pids().values():
                os.kill(process, signal.SIGTERM)
    return {rank: failure.exitcode for rank, failure in result.failures.items()}


def _status(ends: dict[int, int], received: Collection[int], say: Callable[[str], None]) -> int:
    """The exit status of the whole, from those of the processes that failed."""
    if STOPPED_EXIT in ends.values():
        return STOPPED_EXIT
    # Those that are ended because another has failed get SIGTERM.
    killed = {rank: -status for rank, status in ends.items() if status < 0 and status != -signal.SIGTERM}
    if killed:
        died = ", ".join(f"process {rank} ({signal.Signals(number).name})" for rank, number in sorted(killed.items()))
        say(
            f"wmse: error: a process of the run was killed: {died}: the same command continues from the last checkpoint"
        )
    elif received and set(ends.values()) == {-signal.SIGTERM}:  # before they could take note of it
        say("stopped before the first step; the same command starts again")
        return STOPPED_EXIT
    elif ends and set(ends.values()) <= {LOST_EXIT, -signal.SIGTERM}:
        say(f"wmse: error: the processes lost contact with one that {GONE}")
    return 1 if ends else 0
