"""Launching on a real SLURM of two nodes, which tests/slurm/up.sh starts on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).with_name("slurm")
SHORT = ["--trainer.max_epochs", "2", "--data.train_fraction", "0.2"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a shell on a machine with SLURM."""
    places = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=places) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurmctld slurmd slurm-client munge")
    folder = tmp_path_factory.mktemp("slurm")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = min(free.getsockname()[1], 65000)
    up = subprocess.run([SCRIPTS / "up.sh", folder, str(port)], check=False, capture_output=True, text=True)
    try:
        if up.returncode:
            pytest.skip(f"SLURM does not start here: {up.stderr.strip()}")
        yield os.environ | {
            "PATH": places, "SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled",
            "MASTER_ADDR": "127.0.0.1"}  # since n1 is no host's name
    finally:
        subprocess.run([SCRIPTS / "down.sh", folder], check=True)


@pytest.fixture
def lz(environment, tmp_path):
    """The command line, in a folder of its own."""
    return caller(environment, tmp_path)


def caller(environment, folder):
    def call(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "layerzoo", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=folder)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        return done.stdout
    return call


def job_of(out: str) -> str:
    return re.search(r"^job +(\d+)$", out, re.MULTILINE)[1]


def state(lz, job: str) -> str:
    return next(line.split()[2] for line in lz("jobs").splitlines() if line.split()[:1] == [job])


def until(holds, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(2)


def printed(lz, job: str, text: str) -> bool:
    """Whether a job that has not failed has printed a text."""
    log = lz("logs", job)
    assert "Traceback" not in log and "failed" not in state(lz, job), log
    return text in log


def test_two_nodes_train_one_model(lz, tmp_path):
    job = job_of(lz("launch", "quickstart", "--cluster", "slurm", "--nodes", "2", "--time", "20", *SHORT))
    until(lambda: state(lz, job) not in ("pending", "running", "completing"))
    log = lz("logs", job)
    assert state(lz, job) == "done", log
    assert "batch  64 = 2 x cpu x 32" in log and log.count("epoch 1/2") == log.count("next  layerzoo") == 1
    assert re.search(rf"{job} +quickstart +done +\d+ +test/top1 0\.\d{{4}} +runs/quickstart/\w+-s0", lz("jobs"))
    assert lz("launch", "quickstart", "--cluster", "slurm", *SHORT) == "nothing to submit: every run is done, or in a job\n"


def test_a_cancelled_job_ends_and_is_not_queued_again(lz, environment, tmp_path):
    job = job_of(lz("launch", "quickstart", "--cluster", "slurm", "--seed", "1", "--trainer.max_epochs", "50"))
    until(lambda: printed(lz, job, "epoch 1/50"))
    assert state(lz, job) == "running" and "trains already" in subprocess.run(
        [sys.executable, "-m", "layerzoo", "launch", "quickstart", "--cluster", "slurm", "--seed", "1", "--trainer.max_epochs", "50"],
        check=False, capture_output=True, text=True, env=environment, cwd=tmp_path).stderr
    assert lz("cancel", job) == f"job     {job} is asked to end\n"
    until(lambda: state(lz, job) not in ("running", "completing"))
    time.sleep(8)  # longer than a requeued job waits here
    shown = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True, env=environment).stdout
    assert state(lz, job) == "cancelled" and "Restarts=0" in shown and "JobState=CANCELLED" in shown


def test_a_sweep_as_an_array(lz):
    words = ["sweep", "quickstart", "--over", "model.layer=nystrom", "--over", "seed=1,2", "--cluster", "slurm", *SHORT]
    out = lz(*words, "--wait")
    assert out.count("2 of 2") == 1 and re.search(r"nystrom .* 0\.\d{4} ± 0\.\d{4}", out), lz("logs", job_of(out))
    again = lz(*words)
    assert again.startswith("nothing to submit") and again.count("2 of 2") == 1


LONG = ["--nodes", "2", "--seed", "2", "--trainer.max_epochs", "60", "--data.train_fraction", "0.3"]  # SLURM looks at time limits twice a minute


def left(tmp_path, runs):
    """Bytes of the final weights, and all metrics but those of time."""
    (folder,) = tmp_path.glob(f"{runs}/quickstart/*-s2")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "checkpoint" / "model.safetensors").read_bytes(), [
        {key: value for key, value in row.items() if key not in ("time", "train/images_per_s")} for row in rows]


@pytest.fixture(scope="module")
def unbroken(environment, tmp_path_factory):
    """What a run on two nodes leaves that nothing interrupts."""
    folder = tmp_path_factory.mktemp("unbroken")
    call = caller(environment, folder)
    job = job_of(call("launch", "quickstart", "--cluster", "slurm", *LONG))
    until(lambda: state(call, job) not in ("pending", "running", "completing"))
    assert state(call, job) == "done", call("logs", job)
    return left(folder, "runs")


def limit(environment, job: str, minutes: int) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True, env=environment)


def test_a_job_at_its_time_limit_goes_on_to_the_same_bits(lz, environment, tmp_path, unbroken):
    """SLURM itself asks it to stop; all ranks do, the job is queued again and finishes, with every step once."""
    job = job_of(lz("launch", "quickstart", "--cluster", "slurm", "--time", "30", *LONG))
    until(lambda: printed(lz, job, "epoch 2/60"))
    limit(environment, job, 2)
    until(lambda: printed(lz, job, "stopped; "))
    limit(environment, job, 30)
    ended(lz, environment, job)
    assert left(tmp_path, "runs") == unbroken


def test_a_job_whose_node_is_lost_goes_on_to_the_same_bits(lz, environment, tmp_path, unbroken):
    job = job_of(lz("launch", "quickstart", "--cluster", "slurm", "--trainer.rank_timeout", "60", *LONG))
    until(lambda: printed(lz, job, "epoch 2/60"))
    lose(environment, "n2")
    down = ["sinfo", "--noheader", "--states=down", "--format=%N"]
    until(lambda: "n2" in subprocess.run(down, check=True, capture_output=True, text=True, env=environment).stdout)
    subprocess.run(["slurmd", "-N", "n2"], check=True, env=environment)
    ended(lz, environment, job)
    assert left(tmp_path, "runs") == unbroken


def ended(lz, environment, job: str) -> None:
    """Wait until a job that is queued again has finished, each epoch trained once."""
    until(lambda: state(lz, job) in ("done", "unknown") or "failed" in state(lz, job))
    shown = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True, env=environment).stdout
    log = lz("logs", job)
    assert state(lz, job) == "done" and re.search("Restarts=[1-9]", shown) and "JobState=COMPLETED" in shown, log + shown
    assert ", resumed from " in log and log.count("epoch 60/60") == log.count("epoch 1/60") == 1


def lose(environment, node: str) -> None:
    """Kill whatever runs there: the daemon, the steps and their processes."""
    ours = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "environ").read_bytes().split(b"\0")
            parent = re.search(r"PPid:\t(\d+)", (path / "status").read_text())[1]
        except OSError:
            continue
        if f"SLURMD_NODENAME={node}".encode() in words and f"SLURM_CONF={environment['SLURM_CONF']}".encode() in words:
            ours += [path.name, parent]
    assert ours
    daemon = Path(environment["SLURM_CONF"]).with_name(f"slurmd.{node}.pid").read_text().strip()
    subprocess.run(["kill", "-KILL", daemon, *ours], check=False)
