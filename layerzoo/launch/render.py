"""The script of a launch as text. Every value of a user is quoted, or has been refused."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, fields

from layerzoo.errors import bad_value
from layerzoo.launch.values import check_name, check_override, check_text

GRACE = 120  # seconds before the time limit at which a job is asked to stop; SLURM may ask a minute earlier
RESTARTS = 100  # requeues after which a job that never finishes is given up
_NAME = (r"[\w.+-]+(,[\w.+-]+)*", "letters, digits, dots, + and -, names parted by commas")
_NAMES = {
    "partition": _NAME, "account": _NAME, "qos": _NAME, "constraint": _NAME, "gpu_type": (r"[\w.-]+", "letters, digits, dots and -"),
    "time": (r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d(:\d\d)?)?", "minutes, hours:minutes:seconds or days-hours"),
    "mem": (r"\d+[KMGT]?", "a whole number with K, M, G or T"),
    "image": (r"[\w.:/@-]+", "the address of an image")}


@dataclass(frozen=True)
class Machines:
    """What a job asks for.

    Args:
        nodes: machines.
        gpus_per_node: GPUs of each; 0 = train on CPUs.
        ranks_per_node: processes of each; 0 = one for each GPU, or one.
        cpus_per_rank: cores of each process; 0 = the cluster's default.
        gpu_type: such as h100; "" = any.
        partition, account, qos, constraint, time, mem: as sbatch takes them; "" = the cluster's default.
        image: of containers, for Kubernetes.
    Raises:
        ValueError: for numbers out of range and for names with characters that names have not.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    ranks_per_node: int = 0
    cpus_per_rank: int = 0
    gpu_type: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""
    mem: str = ""
    image: str = ""

    def __post_init__(self):
        for field in fields(self):
            value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if field.name in _NAMES:
                if value:
                    check_name(option, value, *_NAMES[field.name])
            elif value < (lowest := field.default):
                raise bad_value(option, got=value, expected=f"a whole number >= {lowest}", do="Raise it.")
        if self.gpus_per_node and self.ranks_per_node not in (0, self.gpus_per_node):
            raise bad_value(
                "--ranks-per-node", got=self.ranks_per_node, expected=f"one rank for each of {self.gpus_per_node} GPUs", do="Leave it out.")
        if self.gpu_type and not self.gpus_per_node:
            raise bad_value("--gpu-type", got=self.gpu_type, expected="--gpus-per-node N with it", do="Say how many.")

    @property
    def ranks(self) -> int:
        """Processes of each node."""
        return self.ranks_per_node or self.gpus_per_node or 1


@dataclass(frozen=True)
class Plan:
    """What a job runs.

    Args:
        recipe: as `layerzoo fit` takes it.
        name: of the recipe.
        free: of trainer.accelerator and trainer.strategy, what the recipe leaves to the machine.
        common: overrides of every run, as "key=value".
        entries: overrides of each run; several make an array.
        folder: of the job, relative to `root`.
        root: where commands run.
        python: the interpreter.
    Raises:
        ValueError: for values that cannot stand in a script.
    """

    recipe: str
    name: str
    free: list[str]
    common: list[str]
    entries: list[list[str]]
    folder: str
    root: str
    python: str

    def __post_init__(self):
        check_name("--runs", self.folder, r"(?!-)[\w./+=-]+", "a folder of letters, digits and . / + = -, which SLURM reads without quotes")
        check_text("recipe", self.recipe)
        for override in (*self.common, *(o for entry in self.entries for o in entry)):
            check_override(override)

    @property
    def title(self) -> str:
        """A name for the job."""
        return title(self.name)


def title(recipe_name: str) -> str:
    """A name that every cluster takes; with a prefix, since Lightning takes jobs named bash or interactive for no jobs."""
    return "layerzoo-" + re.sub(r"[^a-z0-9-]+", "-", recipe_name.lower())[:40].strip("-")


def fit_words(plan: Plan, machines: Machines) -> list[str]:
    """The arguments of `python` that train, less the overrides of single runs."""
    own = {"trainer.num_nodes": machines.nodes, "trainer.devices": machines.ranks}
    if "trainer.accelerator" in plan.free:
        own["trainer.accelerator"] = "gpu" if machines.gpus_per_node else "cpu"
    if "trainer.strategy" in plan.free and machines.nodes * machines.ranks > 1:
        own["trainer.strategy"] = "ddp"
    return ["-m", "layerzoo", "fit", plan.recipe, *(f"--{k}={v}" for k, v in own.items()), *options(plan.common)]


def options(overrides: list[str]) -> list[str]:
    """Overrides as the command line takes them, one word each."""
    return [f"--{override}" for override in overrides]


def slurm_script(plan: Plan, machines: Machines) -> str:
    """What sbatch takes. Near the time limit and on preemption ranks are asked to save; the job is then queued again and goes on."""
    several = len(plan.entries) > 1
    table, own = _table(plan, "${SLURM_ARRAY_TASK_ID:-0}")
    asked = {
        "job-name": plan.title, "nodes": machines.nodes, "ntasks-per-node": machines.ranks,
        "gpus-per-node": ":".join(filter(None, (machines.gpu_type, str(machines.gpus_per_node)))) if machines.gpus_per_node else "",
        "cpus-per-task": machines.cpus_per_rank or "", "partition": machines.partition, "account": machines.account, "qos": machines.qos,
        "constraint": machines.constraint, "mem": machines.mem, "time": machines.time,
        "array": f"0-{len(plan.entries) - 1}" if several else "", "output": f"{plan.folder}/log-{'%a' if several else '0'}.txt",
        "signal": f"B:USR1@{GRACE}"}
    lines = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value != ""]
    cores = [f"--cpus-per-task={machines.cpus_per_rank}"] if machines.cpus_per_rank else []  # srun does not take sbatch's
    step = shlex.join(["srun", "--kill-on-bad-exit=1", *cores, plan.python, *fit_words(plan, machines)])
    return "\n".join([
        "#!/bin/bash", *lines, "#SBATCH --open-mode=append", "#SBATCH --requeue", "",
        f"cd -- {shlex.quote(plan.root)} || exit 1",
        "job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        *table, "",
        "asked=",
        """trap 'asked=1; scancel --signal=TERM "$job"' USR1  # near the time limit: the ranks are asked to save and stop""",
        f"{step}{own} &",
        "step=$!",
        'wait "$step"; code=$?',
        'while [[ $asked ]]; do asked=; wait "$step"; code=$?; done  # a signal ends a wait, not the step', "",
        f"if [[ $code -eq 143 && ${{SLURM_RESTART_COUNT:-0}} -lt {RESTARTS} &&",
        '    $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then',
        '    scontrol requeue "$job"  # stopped, and not by scancel: the run goes on from its checkpoint',
        "else",
        f'    echo "$code" >{shlex.quote(plan.folder)}/exit-"${{SLURM_ARRAY_TASK_ID:-0}}"',
        "fi",
        'exit "$code"', ""])


def local_script(plan: Plan, machines: Machines) -> str:
    """The runs one after another on this machine, each by as many processes as it has ranks.

    Raises:
        ValueError: for several nodes.
    """
    if machines.nodes > 1:
        raise bad_value("--nodes", got=machines.nodes, expected="1 with --cluster local, which is this machine", do="Use --ranks-per-node.")
    by = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={machines.ranks}"] if machines.ranks > 1 else []
    table, own = _table(plan, "$task")
    fit, folder = shlex.join([plan.python, *by, *fit_words(plan, machines)]), shlex.quote(plan.folder)
    return "\n".join([
        "#!/bin/bash", f"cd -- {shlex.quote(plan.root)} || exit 1", "worst=0",
        f"for task in {' '.join(map(str, range(len(plan.entries))))}; do",
        *(f"    {line}" for line in table),
        f'    {fit}{own} >{folder}/log-"$task".txt 2>&1',
        "    code=$?",
        f'    echo "$code" >{folder}/exit-"$task"',
        "    (( code > worst )) && worst=$code",
        "done",
        'exit "$worst"', ""])


def _table(plan: Plan, task: str) -> tuple[list[str], str]:
    """Lines that choose the overrides of a run by its number, and the words that then stand for them."""
    if len(plan.entries) == 1:
        return [], "".join(f" {shlex.quote(word)}" for word in options(plan.entries[0]))
    rows = [f"    {i}) overrides=({shlex.join(options(entry))}) ;;" for i, entry in enumerate(plan.entries)]
    return [f'case "{task}" in', *rows, "esac"], ' "${overrides[@]}"'
