"""The image with real engines: `make test-containers`. Each test is about one property of the image."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from builders import ROOT
from builders.containers import (
    DOCKER,
    HOME,
    IMAGE,
    NO_TRAINING,
    ONE_RUN,
    OWNER,
    SIF,
    config,
    docker,
    execute,
    in_docker,
    needs_apptainer,
    new_folder,
    offline,
    planned,
    results,
    snakemake,
    snakemake_command,
    succeeded,
    wait_for,
)
from builders.workflow import environment

if not IMAGE:
    pytest.skip("containers are tested by `make test-containers`", allow_module_level=True)


# --- the image --------------------------------------------------------------------------------------------------------


def test_labels_name_version_revision_and_licence() -> None:
    labels = json.loads(succeeded(docker("image", "inspect", "--format", "{{json .Config.Labels}}", IMAGE)))
    wanted = {"version": "0.1.0", "revision": "test-image", "licenses": "MIT"}
    assert {key: labels[f"org.opencontainers.image.{key}"] for key in wanted} == wanted


def test_the_image_has_no_build_tools_and_no_lists_of_packages() -> None:
    script = (
        "for p in gcc cc make pip pip3 git curl wget; do command -v $p; done; ls /var/lib/apt/lists; ls /layers /src"
    )
    done = in_docker(None, "bash", "-c", script)
    assert done.stdout == "", done.stdout
    assert "No module named pip" in in_docker(None, "python", "-m", "pip").stderr


def test_the_bill_of_materials_is_the_lock_file_and_names_every_licence() -> None:
    bill = json.loads(succeeded(in_docker(None, "cat", "sbom.cdx.json")))["components"]
    python = {c["name"]: c["version"] for c in bill if c["purl"].startswith("pkg:pypi/")}
    debian = {c["name"] for c in bill if c["purl"].startswith("pkg:deb/")}
    lock = (ROOT / "envs/runtime.lock").read_text().replace("\\\n", "").splitlines()
    pins = [Requirement(line.split(" --hash")[0]) for line in lock if line[:1].isalnum()]
    linux = [pin for pin in pins if not pin.marker or pin.marker.evaluate({"python_full_version": "3.11.2"})]
    assert python == {"wmse-repro": "0.1.0", **{pin.name: str(pin.specifier).removeprefix("==") for pin in linux}}
    assert {"python3", "libc6"} <= debian
    assert "python3-pip" not in debian
    unknown = [c["name"] for c in bill if c["licenses"][0]["license"]["name"].startswith("see ")]
    assert len(unknown) < 0.1 * len(bill), unknown


# --- the entry point --------------------------------------------------------------------------------------------------


def test_without_a_mount_everything_runs_as_an_ordinary_user() -> None:
    assert succeeded(in_docker(None, "id", "-u")).strip() == "1000"


def test_processes_are_the_owner_of_the_results_without_any_privilege(tmp_path: Path) -> None:
    shown = succeeded(
        in_docker(new_folder(tmp_path, OWNER), "bash", "-c", "id -u; id -g; grep CapEff /proc/self/status")
    )
    user, group, capabilities = shown.splitlines()
    if os.getuid() == 0:
        assert f"{user}:{group}" == OWNER
    assert int(capabilities.split()[1], 16) == 0


def test_roots_folder_is_written_by_root_without_privileges(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root has a folder of root's")
    shown = succeeded(in_docker(new_folder(tmp_path), "bash", "-c", "touch results/x; grep CapEff /proc/self/status"))
    assert int(shown.split()[1], 16) == 0
    assert (tmp_path / "results/x").stat().st_uid == 0


def test_commands_and_arguments_are_passed_on() -> None:
    assert "garments/wmse-4/seed0" in succeeded(in_docker(None, "wmse", "runs"))
    assert "Job stats" in succeeded(in_docker(None, "-n", "--config", "preset=paper", "methods=[wmse-4]"))
    assert in_docker(None, "bash", "-c", "exit 7").returncode == 7
    assert in_docker(None, "--config", "preset=fast").returncode != 0


def test_one_line_says_whether_a_gpu_is_used() -> None:
    lines = succeeded(in_docker(None, "-n", "-q")).splitlines()
    assert [line for line in lines if line.startswith("GPU: ")] == ["GPU: none, running on the CPU"]
    fake = in_docker(None, "-n", "-q", options=("--device", "/dev/null:/dev/nvidia0"))
    assert "running on the CPU" not in succeeded(fake)


def test_selfcheck_passes_and_finds_what_is_broken(tmp_path: Path) -> None:
    assert "FAILED" not in succeeded(in_docker(None, "wmse", "selfcheck"))
    folder = new_folder(tmp_path, OWNER)
    unwritable = in_docker(folder, "wmse", "selfcheck", options=("--user", "999:999"))
    assert unwritable.returncode == 1
    assert "FAILED  results" in unwritable.stdout
    sample = "/opt/venv/lib/python3.11/site-packages/wmse/datasets/fashion_mnist_sample/t10k-labels-idx1-ubyte.gz"
    damaged = in_docker(None, "wmse", "selfcheck", options=("-v", f"/dev/null:{sample}"))
    assert damaged.returncode == 1
    assert "FAILED  embedded data" in damaged.stdout


def test_the_container_becomes_healthy() -> None:
    name = succeeded(docker("run", "-d", "--network", "none", "--health-interval", "2s", IMAGE, "sleep", "90")).strip()
    try:
        state = wait_for(
            lambda: docker("inspect", "-f", "{{.State.Health.Status}}", name).stdout.strip(), "healthy", 60
        )
    finally:
        docker("rm", "-f", "-v", name)
    assert state == "healthy"


def test_an_unwritable_results_folder_is_one_message(tmp_path: Path) -> None:
    done = in_docker(new_folder(tmp_path, OWNER), options=("--user", "999:999"))
    assert done.returncode == 1
    if os.getuid() == 0:
        assert f"start the container with --user {OWNER}" in done.stderr


# --- runs -------------------------------------------------------------------------------------------------------------


def test_read_only_with_an_arbitrary_user_and_no_capabilities(tmp_path: Path) -> None:
    folder = new_folder(tmp_path, OWNER)
    locked = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    succeeded(in_docker(folder, *config(ONE_RUN), options=(*locked, "--user", OWNER)))
    assert "fashion_mnist/wmse-2/seed0" in (folder / "results/tables.md").read_text()
    # Only the results are mounted: the data is gone, and is not needed for what is finished.
    again = in_docker(folder, "-n", *config(ONE_RUN), options=(*locked, "--user", OWNER))
    assert not planned(succeeded(again))


@pytest.fixture
def containers() -> Iterator[list[str]]:
    """Names of containers to remove afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        docker("rm", "-f", "-v", name)


def test_docker_stop_writes_a_checkpoint_and_the_next_run_goes_on(tmp_path: Path, containers: list[str]) -> None:
    folder = new_folder(tmp_path, OWNER)
    long = config(ONE_RUN, epochs=30, lr_drops=[10], eval_every=100, eval_every_final=100)

    def start() -> str:
        mount = f"{folder}/results:{HOME}/results"
        name = succeeded(docker("run", "-d", "--network", "none", "-v", mount, IMAGE, *long)).strip()
        containers.append(name)
        return name

    def log(name: str) -> str:
        done = docker("logs", name)
        return done.stdout + done.stderr

    first = start()
    assert "epoch 2/30" in wait_for(lambda: log(first), "epoch 2/30", 600), log(first)
    second = in_docker(folder, *long)
    assert second.returncode == 1
    assert "results: at work here is snakemake" in second.stderr
    docker("stop", "--time", "60", first)  # then it would be killed, with 137
    assert docker("inspect", "-f", "{{.State.ExitCode}}", first).stdout.strip() == "143", log(first)
    assert "the same command continues from there" in log(first)
    assert len(list(folder.glob("results/runs/*/*/*/checkpoints/step-*.pt"))) == 1
    assert "epoch 30/30" not in log(first)

    # Killed without a chance to clean up: Snakemake's lock stays.
    killed = start()
    assert "continuing" in wait_for(lambda: log(killed), "continuing", 600), log(killed)
    docker("kill", killed)
    assert list((folder / "results/.snakemake/locks").iterdir())
    printed = succeeded(in_docker(folder, *long))
    assert "the last run here was killed" in printed
    assert "continuing" in printed
    (result,) = results(folder).values()
    assert result["pretrain"]["resumed"] >= 1
    assert (folder / "results/tables.md").exists()


@needs_apptainer
def test_data_and_results_may_lie_anywhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.getuid():
        pytest.skip("needs a folder outside the home and temporary folders, which Apptainer always shows")
    folder = new_folder(tmp_path_factory.mktemp("bind"))
    outside = Path(f"/srv/wmse-test-{os.getpid()}")
    try:
        (outside / "disk").mkdir(parents=True)
        (outside / "link").symlink_to(outside / "disk")
        (folder / "results").rmdir()
        (outside / "results here").mkdir()
        (folder / "results").symlink_to(outside / "results here")
        places = [f"container={SIF}", f"data_root={outside}/link/data"]
        succeeded(snakemake(folder, "--use-singularity", *config(ONE_RUN), *places))
        assert (outside / "results here/tables.md").exists()
        assert (outside / "disk/data/fashion_mnist/prepared/manifest.json").exists()
        elsewhere = [*config(NO_TRAINING), *places, f"results={outside}/new/results"]
        succeeded(snakemake(folder, "--use-singularity", *elsewhere))
        assert (outside / "new/results/tables.md").exists()
    finally:
        shutil.rmtree(outside)


@needs_apptainer
def test_a_stop_under_apptainer_writes_a_checkpoint(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    settings = [*config(ONE_RUN, epochs=30, lr_drops=[10], eval_every=100, eval_every_final=100), f"container={SIF}"]
    log = folder / "log.txt"
    with open(log, "w") as file:
        command = [*offline(), *snakemake_command(), "--use-singularity", *settings]
        run = subprocess.Popen(command, cwd=folder, env=environment(), stdout=file, stderr=file, start_new_session=True)
        try:
            assert "epoch 2/30" in wait_for(log.read_text, "epoch 2/30", 600), log.read_text()
            os.killpg(run.pid, signal.SIGTERM)  # as batch systems do
            assert run.wait(30) != 0
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert "the same command continues" in wait_for(log.read_text, "the same command continues", 60)
    assert len(list(folder.glob("results/runs/*/*/*/checkpoints/step-*.pt"))) == 1
    printed = succeeded(snakemake(folder, "--use-singularity", *settings))
    assert "continuing" in printed


def test_compose_runs_the_same_image(tmp_path: Path) -> None:
    compose = next((c for c in ([DOCKER, "compose"], ["docker-compose"]) if works([*c, "version"])), None)
    if not compose:
        pytest.skip("COMPOSE NOT TESTED: neither `docker compose` nor docker-compose is installed")
    folder = new_folder(tmp_path, OWNER)
    shutil.copy(ROOT / "compose.yaml", folder)
    environment = {**os.environ, "WMSE_IMAGE": IMAGE, "WMSE_NETWORK": "none"}
    done = execute([*compose, "run", "--rm", "wmse", *config(ONE_RUN)], cwd=folder, env=environment)
    assert "fashion_mnist/wmse-2/seed0" in succeeded(done) + (folder / "results/tables.md").read_text()
    assert (folder / "data/fashion_mnist/prepared/manifest.json").exists()


def works(command: list[str]) -> bool:
    try:
        return execute(command).returncode == 0
    except FileNotFoundError:
        return False
