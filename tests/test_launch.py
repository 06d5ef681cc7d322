"""Launching: jobs of a SLURM that is made of small scripts, jobs of this machine, sweeps."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from launching import KEY, called, cluster, command, run, until  # noqa: F401

from layerzoo.launch import jobs, slurm, sweep
from layerzoo.launch.records import Job, find_job, job_folder, newest_run, progress, read_jobs, write_job
from layerzoo.launch.runs import parse_axis, read_runs
from layerzoo.recipe import read_recipe, run_base


def test_secrets_reach_no_file_and_refusals_leave_none(cluster, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for option in (["--meta.summary", f"with {KEY}"], ["--array", f"over=meta.summary:{KEY},b"]):
        code, out, err = run(capsys, "launch", "quickstart", "--cluster", "slurm", *option)
        assert (code, out) == (2, "") and err.startswith("--meta.summary: got the value of $WANDB_API_KEY, expected no secret")
        assert KEY not in err and not Path("runs").exists() and called(cluster) == []
    assert run(capsys, "launch", "quickstart", "--cluster", "slurm")[0] == 0
    files = [p for p in Path().rglob("*") if p.is_file()]
    assert files and not [p for p in files if KEY in p.read_text()]


def test_a_job_is_submitted_listed_shown_and_cancelled(cluster, capsys):
    words = ["launch", "quickstart", "--cluster", "slurm", "--nodes", "2", "--array", "over=model.layer:nystrom,mhsa", "--seed", "3"]
    shown = run(capsys, *words, "--dry-run")[1]
    assert not Path("runs").exists() and called(cluster) == []
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "") and out == (
        "job     1234\nruns    2, each of 2 x 1 ranks\nnext    layerzoo jobs\n        layerzoo logs 1234\n        layerzoo cancel 1234\n")
    folder = Path("runs/.jobs/layerzoo-quickstart-1")
    assert (folder / "script.sh").read_text() == shown and f"sbatch --parsable {folder}/script.sh" in called(cluster)
    job = json.loads((folder / "job.json").read_text())
    bases = [run_base(read_recipe("quickstart", [f"model.layer={v}", "seed=3"]), "quickstart") for v in ("nystrom", "mhsa")]
    assert job["id"] == "1234" and job["entries"] == [["seed=3", "model.layer=nystrom"], ["seed=3", "model.layer=mhsa"]]
    assert job["runs"] == [str(b) for b in bases]

    command(cluster, "squeue", "printf '1234_0|RUNNING\\n1234_1|PENDING\\n99_N/A|RUNNING\\n'")
    (bases[0] / "ckpt").mkdir(parents=True)
    (bases[0] / "metrics.jsonl").write_text(
        '{"step": 20, "train/loss": 0.5}\n{"step": 23, "val/top1": 0.25}\n{"step": 40, "train/loss": 0.4}\n{"step": 46, "tr')
    out = run(capsys, "jobs")[1]
    assert [line.split() for line in out.splitlines() if "1234" in line] == [
        ["1234_0", "quickstart", "running", "40", "val/top1", "0.2500", str(bases[0])], ["1234_1", "quickstart", "pending", str(bases[1])]]
    (folder / "log-0.txt").write_text("epoch 1\n")
    (folder / "log-1.txt").write_text("epoch 2\n")
    assert run(capsys, "logs", "1234_1")[1] == "epoch 2\n"
    assert run(capsys, "logs", "1234")[1] == f"==> {folder}/log-0.txt <==\nepoch 1\n==> {folder}/log-1.txt <==\nepoch 2\n"
    refused = run(capsys, *words)
    assert refused[0] == 2 and refused[2] == (
        f"launch: got a run that job 1234 trains already, in {bases[0]}, expected one job for a run. `layerzoo cancel 1234` ends it.\n")
    assert run(capsys, "cancel", "1234_1")[1] == "job     1234_1 is asked to end\n" and called(cluster)[-2:] == ["scancel", "1234_1"]
    assert run(capsys, "cancel", "layerzoo-quickstart-1")[0] == 0 and called(cluster)[-1] == "1234"

    command(cluster, "squeue", "exit 1")
    command(cluster, "sacct", "printf '1234_0|CANCELLED by 0\\n1234_1|FAILED\\n1234_1.batch|FAILED\\n'")
    (folder / "exit-1").write_text("1\n")
    assert [row["state"] for row in jobs.rows("runs")] == ["cancelled", "failed (1)"]
    command(cluster, "sacct", "exit 1")
    (folder / "exit-1").write_text("0\n")
    assert [row["state"] for row in jobs.rows("runs")] == ["unknown", "done"]
    assert run(capsys, "jobs", "--runs", "elsewhere")[1].strip().startswith("none")
    assert run(capsys, "jobs", "--seed", "1")[2] == (
        "jobs: got --seed, expected --runs PATH alone. `layerzoo jobs --help` lists its options.\n")
    assert run(capsys, "logs", "12")[2] == (
        "job: got '12', expected a known name such as 1234, layerzoo-quickstart-1. `layerzoo jobs` lists all.\n")


def test_a_job_without_sbatch_or_that_sbatch_refuses(cluster, capsys, monkeypatch):
    def launch():
        code, out, err = run(capsys, "launch", "quickstart", "--cluster", "slurm", "--partition", "P")
        assert out == "" and not list(Path("runs").glob(".jobs/*"))
        return code, err

    command(cluster, "sbatch", "printf 'sbatch: error: invalid partition specified: P\nsbatch: error: Batch job failed\n' >&2; exit 1")
    assert launch() == (1, (
        "sbatch: got 'sbatch: error: invalid partition specified: P sbatch: error: Batch job failed', "
        "expected that SLURM takes it. Correct the option it names, or ask your cluster.\n"))
    command(cluster, "sbatch", "echo hello")
    assert launch() == (1, "sbatch: got 'hello', expected the number of a job. Look with squeue whether there is a new one.\n")
    command(cluster, "sbatch", "exec sleep 5")
    monkeypatch.setattr(slurm, "_PATIENCE", 0.2)
    assert launch() == (1, "sbatch: got no answer in 0.2 s, expected one. Ask again, or look with sinfo.\n")
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch() == (2, (
        "--cluster: got slurm, but no sbatch on the PATH, expected a machine that submits jobs to SLURM. "
        "Run this on the cluster's login node; --dry-run shows the script, --cluster local runs it here.\n"))
    with pytest.raises(slurm.SchedulerError) as caught:
        slurm.cancel("1", None)
    assert str(caught.value) == "scancel: got no such command, expected it on the PATH. Run this on the cluster's login node."
    assert slurm.states() == {}


@pytest.mark.parametrize("words, message", [
    (["--cluster", "local", "--nodes", "2"], (
        "--nodes: got 2, expected 1 with --cluster local, which is this machine. Use --ranks-per-node.")),
    (["--cluster", "slurm", "--trainer.devices", "4"], (
        "--trainer.devices: got 4, expected machines by --nodes, --gpus-per-node and --ranks-per-node. Leave it out.")),
    (["--cluster", "kubernetes", "--dry-run"], "--image: got none, expected the image with layerzoo in it. Add --image ADDRESS."),
    (["--cluster", "kubernetes"], (
        "--cluster: got kubernetes, expected --dry-run with it, since a manifest is yours to apply. Add --dry-run.")),
    (["--cluster", "skypilot", "--gpus-per-node", "1", "--dry-run"], (
        "--gpu-type: got none, expected a type such as H100, by which SkyPilot finds machines. Add --gpu-type NAME.")),
    (["--cluster", "skypilot", "--array", "over=seed:1,2", "--dry-run"], (
        "--array: got 2 runs, expected one run for a manifest. Render one manifest for each.")),
    (["--cluster", "slurm", "--runs", "a b"], (
        "--runs: got 'a b/.jobs/layerzoo-quickstart-1', expected a folder of letters, digits and . / + = -, "
        "which SLURM reads without quotes. Correct it; nothing was written.")),
    (["--cluster", "slurm", "--array", "over=model.layer"], (
        "--array: got 'model.layer', expected a key and values such as model.layer:nystrom,performer. "
        "Part values by commas, without blanks.")),
    (["--cluster", "slurm", "--array", "over=runs:a,b"], (
        "--runs: got a folder for each run, expected other keys to vary, each once. Leave one out.")),
    (["--cluster", "slurm", "--array", "over=seed:1,2", "--seed", "3"], (
        "--seed: got the key twice, expected other keys to vary, each once. Leave one out.")),
    (["--cluster", "slurm", "--array", "over=data.num_workers:1,2"], (
        "runs: got data.num_workers=1 and data.num_workers=2, which are one run, expected values that decide the result. Leave one out."))])
def test_launches_are_refused(cluster, capsys, words, message):
    assert run(capsys, "launch", "quickstart", *words) == (2, "", f"{message}\n")
    assert not Path("runs").exists() and not Path("a b").exists() and called(cluster) == []


def test_wrong_values_of_a_recipe_are_refused_before_anything_is_submitted(cluster, capsys):
    code, _, err = run(capsys, "launch", "quickstart", "--cluster", "slurm", "--array", "over=model.layer:nystrom,nystrm")
    assert code == 2 and "expected: a known layer such as nystrom" in err and called(cluster) == []


def test_combinations():
    layers = parse_axis("--over", "model.layer={name: mhsa, num_heads: 4},\"nystrom\",'a,b'", "=")
    assert layers == ("model.layer", ["{name: mhsa, num_heads: 4}", '"nystrom"', "'a,b'"])
    runs = read_runs("quickstart", ["data.batch_size=32"], [("seed", ["1", "2"]), ("model.layer", ["mhsa", "nystrom"])])
    assert runs.entries[:2] == [["seed=1", "model.layer=mhsa"], ["seed=1", "model.layer=nystrom"]] and len(runs.entries) == 4
    assert runs.recipes[3].seed == 2 and runs.recipes[3].model.layer == "nystrom" and runs.recipes[3].data.batch_size == 32
    for text in ("seed=", "seed=1,,2", "=1", "seed"):
        with pytest.raises(ValueError, match="expected a key and values such as model.layer=nystrom,performer"):
            parse_axis("--over", text, "=")


def group_is_gone(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_local_job(cluster, capsys, monkeypatch):
    """Runs in the background one after another; ends when asked to, and is known by its lock."""
    command(cluster, "python", 'echo "$@"; [[ "$*" == *seed=2* ]] && exit 3; [[ "$*" == *seed=4* ]] && exec sleep 30; exit 0')
    monkeypatch.setattr(sys, "executable", str(cluster / "python"))

    def seen() -> list[str]:
        return [row["state"] for row in jobs.rows("runs")]

    code, out, _ = run(capsys, "launch", "quickstart", "--cluster", "local", "--array", "over=seed:1,2,4,5", "--ranks-per-node", "2")
    assert code == 0 and out.startswith("job     layerzoo-quickstart-1\nruns    4, each of 1 x 2 ranks\n")
    until(lambda: seen()[2] == "running")
    assert seen() == ["done", "failed (3)", "running", "pending"]
    log = run(capsys, "logs", "layerzoo-quickstart-1_1")[1]
    assert log.startswith("-m torch.distributed.run --standalone --nproc-per-node=2 -m layerzoo fit quickstart ")
    assert log.endswith("--trainer.accelerator=cpu --trainer.strategy=ddp --seed=2\n")
    assert run(capsys, "cancel", "layerzoo-quickstart-1_0")[2] == (
        "job: got layerzoo-quickstart-1_0, expected a whole job where it is local. "
        "`layerzoo cancel layerzoo-quickstart-1` ends all of it.\n")
    refused = run(capsys, "launch", "quickstart", "--cluster", "local", "--seed", "5")[2]
    assert refused.startswith("launch: got a run that job layerzoo-quickstart-1 trains already")
    assert run(capsys, "cancel", "layerzoo-quickstart-1")[0] == 0
    until(lambda: "running" not in seen())
    assert seen() == ["done", "failed (3)", "cancelled", "cancelled"]
    (job,) = read_jobs("runs").values()
    assert os.waitstatus_to_exitcode(os.waitpid(job.process, 0)[1]) == -signal.SIGTERM
    until(lambda: group_is_gone(job.process))  # its other processes were asked to end as well, and may take a moment longer
    assert run(capsys, "cancel", "layerzoo-quickstart-1")[0] == 0  # nothing is left to end, nor is anything else's


def test_folders_of_jobs_and_runs(tmp_path):
    assert job_folder(str(tmp_path), "a") == tmp_path / ".jobs" / "a-1"
    for name in ("a-2", "a-10", "a-b-11"):
        (tmp_path / ".jobs" / name).mkdir(parents=True)
    assert job_folder(str(tmp_path), "a").name == "a-11" and job_folder(str(tmp_path), "b").name == "b-1"
    write_job(tmp_path / ".jobs" / "a-2", Job("a-2", "5", "slurm", "a", [["x=1"], ["x=2"]], ["r", "s"]))
    assert find_job(str(tmp_path), "5_1")[2] == find_job(str(tmp_path), "a-2_1")[2] == 1 and find_job(str(tmp_path), "5")[2] is None
    with pytest.raises(ValueError, match="got '5_2'"):
        find_job(str(tmp_path), "5_2")
    base = tmp_path / "abc-s1"
    assert newest_run(base) is None and progress(base) == {"step": "", "metric": "", "run": str(base)}
    for name in ("abc-s1", "abc-s1-2", "abc-s1-10", "abc-s10"):
        (tmp_path / name / "ckpt").mkdir(parents=True)
    assert newest_run(base).name == "abc-s1-10"


def finished(recipe, name, accuracy):
    folder = run_base(recipe, name)
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint" / "manifest.json").write_text(json.dumps({"metrics": {"test/top1": accuracy, "test/loss": 1.0}}))


def test_a_sweep_here(cluster, capsys, monkeypatch):
    """Trains every combination, goes on after one that fails, and prints means over seeds; the second call finds all but that one done."""
    from layerzoo.train import run as train_run

    fitted = []

    def fit(recipe, *, recipe_name, resume):
        fitted.append((recipe.model.layer, recipe.seed, resume))
        if recipe.model.layer == "nystrom" and recipe.seed == 2 and len(fitted) < 5:
            raise FloatingPointError("training loss at step 3 is nan.")
        finished(recipe, recipe_name, recipe.seed / 10)

    monkeypatch.setattr(train_run, "fit", fit)
    words = ["sweep", "quickstart", "--over", "model.layer=mhsa,nystrom", "--over", "seed=1,2"]
    code, out, err = run(capsys, *words)
    assert code == 1 and err == "training loss at step 3 is nan.\n" and "sweep  2/4: model.layer=mhsa seed=2\n" in out
    assert fitted == [("mhsa", 1, "auto"), ("mhsa", 2, "auto"), ("nystrom", 1, "auto"), ("nystrom", 2, "auto")]
    assert [line.split() for line in out.splitlines() if " of 2" in line] == [
        ["mhsa", "2", "of", "2", "0.1500", "±", "0.0707"], ["nystrom", "1", "of", "2", "0.1000", "failed"]]
    path = Path(out.splitlines()[-1])
    lines = path.read_text().splitlines()
    assert lines[0] == "model.layer,seed,state,test/loss,test/top1,run"
    assert lines[2] == f"mhsa,2,done,1.0,0.2,{run_base(read_recipe('quickstart', ['model.layer=mhsa', 'seed=2']), 'quickstart')}"
    assert lines[4].startswith("nystrom,2,failed: training loss at step 3 is nan.,,,runs/quickstart/")
    code, out, _ = run(capsys, *words)
    assert code == 0 and out.count("2 of 2") == 2 and Path(out.splitlines()[-1]) == path


def test_a_sweep_as_a_job(cluster, capsys, monkeypatch):
    """The first call submits an array, the next what is neither done nor in a job, the last prints the table."""
    words = ["sweep", "quickstart", "--over", "seed=1,2,3", "--cluster", "slurm"]
    recipes = [read_recipe("quickstart", [f"seed={seed}"]) for seed in (1, 2, 3)]
    finished(recipes[0], "quickstart", 0.5)
    assert "--array=0-2" in run(capsys, *words, "--dry-run")[1]
    out = run(capsys, *words)[1]
    assert "job     1234\nruns    2 of 3, the others being done or in a job, each of 1 x 1 ranks\n" in out
    assert "1 of 3" in out and "--array=0-1" in Path("runs/.jobs/layerzoo-quickstart-1/script.sh").read_text()
    command(cluster, "squeue", "[[ -e ended ]] || printf '1234_0|RUNNING\\n1234_1|PENDING\\n'")
    assert run(capsys, *words)[1].startswith("nothing to submit: every run is done, or in a job\n")
    naps = []

    def nap(seconds):
        naps.append(seconds)
        for recipe in recipes[1:]:
            finished(recipe, "quickstart", 0.7)
        Path("ended").touch()

    monkeypatch.setattr(sweep, "time", SimpleNamespace(sleep=nap))
    out = run(capsys, *words, "--wait")[1]
    assert naps == [5] and "3 of 3" in out and "0.6333 ± 0.1155" in out
    assert run(capsys, "sweep", "quickstart", "--over", "seed=1", "--wait")[2] == (
        "--wait: got no --cluster, expected --cluster slurm or local with it. Add one, or leave it out.\n")
    assert run(capsys, "sweep", "quickstart", "--over", "seed=1", "--gpus-per-node", "2")[2].startswith("--gpus-per-node: got no --cluster")


def test_launching_imports_nothing_heavy(tmp_path):
    launch = ["launch", "quickstart", "--cluster", "slurm"]
    calls = [["jobs"], [*launch, "--dry-run"], [*launch, "--partition", ";"]]
    code = f"import sys; from layerzoo import cli; codes = [cli.main(c) for c in {calls}]\n"
    code += "print(codes, sorted({'torch', 'pytorch_lightning', 'wandb', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[0, 0, 2] []"
