"""Scripts and manifests: as text, and as bash runs them."""

import os
import random
import re
import shlex
import signal
import socket
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import KEY, cluster, command, plan, run, until  # noqa: F401

from layerzoo.launch import jobs
from layerzoo.launch.manifests import kubernetes, skypilot
from layerzoo.launch.render import Machines, fit_words, local_script, options, slurm_script
from layerzoo.launch.runs import read_runs
from layerzoo.launch.values import check_text

GOLDEN = r"""#!/bin/bash
#SBATCH --job-name=layerzoo-quickstart
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=h100:8
#SBATCH --cpus-per-task=4
#SBATCH --partition=P
#SBATCH --time=4:00:00
#SBATCH --array=0-1
#SBATCH --output=runs/.jobs/layerzoo-quickstart-1/log-%a.txt
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --requeue

cd -- '/my data' || exit 1
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
case "${SLURM_ARRAY_TASK_ID:-0}" in
    0) overrides=(--model.layer=nystrom) ;;
    1) overrides=('--model.layer={name: mhsa, num_heads: 4}') ;;
esac

asked=
trap 'asked=1; scancel --signal=TERM "$job"' USR1  # near the time limit: the ranks are asked to save and stop
srun --kill-on-bad-exit=1 --cpus-per-task=4 /opt/bin/python -m layerzoo fit quickstart --trainer.num_nodes=2 """ + (
    r"""--trainer.devices=8 --trainer.accelerator=gpu --trainer.strategy=ddp --seed=7 "${overrides[@]}" &
step=$!
wait "$step"; code=$?
while [[ $asked ]]; do asked=; wait "$step"; code=$?; done  # a signal ends a wait, not the step

if [[ $code -eq 143 && ${SLURM_RESTART_COUNT:-0} -lt 100 &&
    $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then
    scontrol requeue "$job"  # stopped, and not by scancel: the run goes on from its checkpoint
else
    echo "$code" >runs/.jobs/layerzoo-quickstart-1/exit-"${SLURM_ARRAY_TASK_ID:-0}"
fi
exit "$code"
""")


def test_the_script_of_an_array():
    entries = (["model.layer=nystrom"], ["model.layer={name: mhsa, num_heads: 4}"])
    machines = Machines(2, 8, cpus_per_rank=4, gpu_type="h100", partition="P", time="4:00:00")
    assert slurm_script(plan(common=["seed=7"], entries=entries, root="/my data"), machines) == GOLDEN


def test_a_single_run_has_no_table():
    text = slurm_script(plan(), Machines())
    assert "case" not in text and "--array" not in text and "gpus" not in text and "--partition" not in text
    assert "/log-0.txt\n" in text and "--trainer.num_nodes=1 --trainer.devices=1 --trainer.accelerator=cpu &\n" in text


def test_what_the_recipe_says_of_accelerator_and_strategy_stays(cluster):
    text = jobs.script(read_runs("quickstart", ["trainer.strategy=fsdp", "trainer.accelerator=cpu"], []), Machines(2), "slurm")[1]
    assert text.count("strategy") == 1 and text.count("accelerator") == 1 and "--trainer.strategy=fsdp --trainer.accelerator=cpu" in text


SIGNS = "'\"`$(){}[]<>|&;!*?~#%\\=,:@+-_. /"
TRAPS = (
    "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "', "& touch pwned", "| touch pwned", "${IFS}touch${IFS}pwned",
    "\\", "'", "--", "$'\\n'")


def hostile(draw: random.Random) -> str:
    letters = SIGNS + string.ascii_letters + "äß漢"
    return "".join(draw.choice(TRAPS) if draw.random() < 0.3 else draw.choice(letters) for _ in range(draw.randint(1, 12)))


def words_of(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\0")[:-1]


def test_no_value_is_ever_executed(tmp_path, monkeypatch):
    """Two hundred hostile values as overrides, recipes and folders: bash gives srun, python and torchrun the very words that were meant."""
    draw = random.Random(0)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("srun", "torchrun", "python it's"):
        command(bin_folder, name, 'printf "%s\\0" "$@" >"$RECORD"')
    env = {"PATH": f"{bin_folder}:/usr/bin:/bin", "RECORD": str(tmp_path / "words"), "SLURM_JOB_ID": "1", "SKYPILOT_NUM_NODES": "2",
           "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    before = None
    for i in range(50):
        values = [hostile(draw) for _ in range(4)]
        root = tmp_path / f"root {values[3].replace('/', '')[:40]}"
        (root / "runs").mkdir(parents=True, exist_ok=True)
        recipe, common, entry = f"{values[2]}.yaml", [f"meta.summary={values[0]}"], [f"meta.paper={values[1]}"]
        made = plan("runs", recipe, common, [["seed=1"], entry][i % 2:], root, str(bin_folder / "python it's"))
        expected = [*fit_words(made, Machines()), *options(made.entries[-1])]
        tasks = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1"} if len(made.entries) > 1 else {}
        for text, prefix in ((slurm_script(made, Machines()), ["--kill-on-bad-exit=1", made.python]), (local_script(made, Machines()), [])):
            done = subprocess.run(["bash", "-c", text], check=False, capture_output=True, text=True, env=env | tasks, cwd=tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            log = root / "runs" / f"log-{len(made.entries) - 1}.txt"
            assert words_of(tmp_path / "words") == prefix + expected, text
            assert log.exists() is (prefix == [])
            for path in (root / "runs").iterdir():
                assert path.name.startswith(("log-", "exit-"))
                path.unlink()
        single = plan("runs", recipe, common, [entry], root)
        expected = [*fit_words(single, Machines()), *options(single.entries[0])]
        subprocess.run(["bash", "-c", yaml.safe_load(skypilot(single, Machines()))["run"]], check=True, env=env, cwd=tmp_path)
        assert words_of(tmp_path / "words") == [
            "--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--nproc-per-node=1", "--master-port=29500", *expected]
        job = yaml.safe_load(kubernetes(single, Machines(image="a")))["spec"]["pytorchReplicaSpecs"]["Master"]
        assert job["template"]["spec"]["containers"][0]["command"] == ["torchrun", *expected]
        before = before or sorted(os.listdir("."))
    assert not list(tmp_path.rglob("pwned")) and sorted(os.listdir(".")) == before


def test_lines_of_sbatch_take_no_signs():
    draw = random.Random(1)
    for _ in range(200):
        value = hostile(draw) + draw.choice("\n;$ '\"#%")
        for name in ("partition", "account", "qos", "constraint", "time", "mem", "gpu_type", "image"):
            with pytest.raises(ValueError, match="Correct it; nothing was written"):
                Machines(gpus_per_node=1, **{name: value})
        with pytest.raises(ValueError, match="^--runs: got .* expected a folder of letters, digits and . / "):
            plan(folder=f"runs{value}")


@pytest.mark.parametrize("options, message", [
    ({"nodes": 0}, "--nodes: got 0, expected a whole number >= 1. Raise it."),
    ({"gpus_per_node": -1}, "--gpus-per-node: got -1, expected a whole number >= 0. Raise it."),
    ({"gpus_per_node": 4, "ranks_per_node": 2}, "--ranks-per-node: got 2, expected one rank for each of 4 GPUs. Leave it out."),
    ({"gpu_type": "h100"}, "--gpu-type: got h100, expected --gpus-per-node N with it. Say how many."),
    ({"time": "4h"}, "--time: got '4h', expected minutes, hours:minutes:seconds or days-hours. Correct it; nothing was written."),
    ({"mem": "64 GB"}, "--mem: got '64 GB', expected a whole number with K, M, G or T. Correct it; nothing was written."),
    ({"partition": "a\n#SBATCH --uid=0"}, (
        "--partition: got 'a\\n#SBATCH --uid=0', expected letters, digits, dots, + and -, names parted by commas. "
        "Correct it; nothing was written."))])
def test_machines_are_refused(options, message):
    with pytest.raises(ValueError) as caught:
        Machines(**options)
    assert str(caught.value) == message


def test_values_are_of_one_line_and_no_secret(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", KEY)
    lines = "--meta.summary: got 'a\\nb', expected characters that print, on one line. Take the others out."
    asked = (
        "expected no secret: it would stand in the script, the recipe and the manifest. Leave it in the environment, which jobs inherit.")
    for text, message in (
            ("a\nb", lines), (f"x{KEY}", f"--meta.summary: got the value of $MY_API_KEY, {asked}"),
            *((t, f"--meta.summary: got what looks like a key or a password, {asked}") for t in (
                "hf_" + "A" * 24, "s3://me:word@host/x", "0123456789abcdef" * 2 + "01234567", "AKIA" + "Z" * 16))):
        with pytest.raises(ValueError) as caught:
            check_text("--meta.summary", text)
        assert str(caught.value) == message
    assert check_text("x", "folder:/data/images, sha256 " + "0123456789abcdef" * 4) and check_text("x", "hf_hub")


@pytest.mark.parametrize("code, state, restarts, requeued", [
    (0, "RUNNING", 0, False), (1, "RUNNING", 0, False), (143, "RUNNING", 3, True), (143, "COMPLETING", 0, False),
    (143, "RUNNING", 100, False)])
def test_what_stops_is_queued_again_unless_it_was_cancelled(tmp_path, code, state, restarts, requeued):
    (tmp_path / "job").mkdir()
    command(tmp_path, "srun", f"exit {code}")
    command(tmp_path, "squeue", f"[[ $* == '--noheader --jobs=7_0 --format=%T' ]] && echo {state}")
    command(tmp_path, "scontrol", 'echo "$@" >scontrol.txt')
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    env["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(["bash", "-c", slurm_script(plan("job", root=tmp_path), Machines())], check=False, env=env)
    assert done.returncode == code
    asked, ended = tmp_path / "scontrol.txt", tmp_path / "job" / "exit-0"
    assert (asked.exists(), ended.exists()) == (requeued, not requeued)
    assert asked.read_text() == "requeue 7_0\n" if requeued else ended.read_text() == f"{code}\n"


def test_near_the_time_limit_ranks_are_asked_to_stop(tmp_path):
    """USR1 for the batch script becomes TERM for the step, whose own exit code is then taken."""
    (tmp_path / "job").mkdir()
    command(tmp_path, "srun", "touch begun; until [[ -e asked ]]; do sleep 0.02; done; exit 5")
    command(tmp_path, "scancel", 'echo "$@" >said; sleep 0.1; touch asked')
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "9"}
    batch = subprocess.Popen(["bash", "-c", slurm_script(plan("job", root=tmp_path), Machines())], env=env)
    until(lambda: (tmp_path / "begun").exists())
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(10) == 5 and (tmp_path / "said").read_text() == "--signal=TERM 9\n"


def test_manifests():
    job = yaml.safe_load(kubernetes(plan(), Machines(2, 8, mem="64G", cpus_per_rank=2, image="registry/zoo:1")))
    assert job["apiVersion"] == "kubeflow.org/v1" and job["kind"] == "PyTorchJob" and job["metadata"]["name"] == "layerzoo-quickstart"
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert job["spec"]["nprocPerNode"] == "8" and replicas["Master"]["replicas"] == replicas["Worker"]["replicas"] == 1
    pod = replicas["Worker"]["template"]["spec"]["containers"][0]
    assert pod["resources"]["limits"] == {"nvidia.com/gpu": 8, "cpu": 16, "memory": "64Gi"} and pod["image"] == "registry/zoo:1"
    assert pod["command"][:5] == ["torchrun", "-m", "layerzoo", "fit", "quickstart"] and "--trainer.num_nodes=2" in pod["command"]
    assert "Worker" not in kubernetes(plan(), Machines(image="a"))
    task = yaml.safe_load(skypilot(plan(), Machines(2, 8, gpu_type="H100")))
    assert task["num_nodes"] == 2 and task["resources"] == {"accelerators": "H100:8"} and "--trainer.devices=8" in task["run"]


PAGE = (Path(__file__).parents[1] / "docs" / "launch.md").read_text(encoding="utf-8")
RENDERED = re.findall(r"```console\n\$ layerzoo ([^\n]+ --dry-run)\n```\n\n```\w+\n(.+?)```", PAGE, re.DOTALL)


def test_the_page_shows_scripts_for_three_clusters():
    assert [re.search(r"--cluster (\w+)", words)[1] for words, _ in RENDERED] == ["slurm", "kubernetes", "skypilot"]


@pytest.mark.parametrize("words, text", RENDERED, ids=[re.search(r"--cluster (\w+)", words)[1] for words, _ in RENDERED])
def test_the_page_shows_what_is_rendered(cluster, capsys, words, text):
    shown = run(capsys, *words.split())[1]
    assert shown.replace(os.getcwd(), "/data/zoo").replace(sys.executable, "/data/zoo/.venv/bin/python") == text


@pytest.mark.slow
def test_the_torchrun_commands_of_the_page_train(tmp_path):
    """The second on two nodes, both of which are this machine; the first again finds its run done."""
    one, several = re.findall(r"^\$ (torchrun .+)$", PAGE, re.MULTILINE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    short = ["--trainer.max_epochs", "1", "--data.train_fraction", "0.2", "--trainer.accelerator", "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

    def start(text: str, *more: str) -> subprocess.Popen:
        words = [sys.executable, "-m", "torch.distributed.run", *shlex.split(text)[1:], *short, *more]
        return subprocess.Popen(words, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    for nodes, runs in (([one], "a"), ([one], "a"), ([several, several.replace("--node-rank 0", "--node-rank 1")], "b")):
        started = [start(node.replace("10.0.0.1", "127.0.0.1").replace("29500", port), "--runs", runs) for node in nodes]
        printed = "".join(process.communicate(timeout=300)[0] for process in started)
        assert [process.returncode for process in started] == [0] * len(nodes), printed
        if "is done already" not in printed:
            assert printed.count("batch  64 = 2 x cpu x 32") == printed.count("test/top1") == 1
    assert len(list(tmp_path.glob("*/quickstart/*/checkpoint"))) == 2
