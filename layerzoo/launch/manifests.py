"""Manifests of clusters that are no SLURM, as text: a PyTorchJob for Kubernetes and a task for SkyPilot."""

from __future__ import annotations

import shlex

from layerzoo.errors import bad_value
from layerzoo.launch.render import Machines, Plan, fit_words, options
from layerzoo.strict_yaml import write

_PORT = 29500


def kubernetes(plan: Plan, machines: Machines) -> str:
    """A PyTorchJob of Kubeflow.

    Runs and data lie in the volume claim `layerzoo`; $WANDB_API_KEY is the secret `wandb`, if there is one.

    Raises:
        ValueError: without an image.
    """
    if not machines.image:
        raise bad_value("--image", got="none", expected="the image with layerzoo in it", do="Add --image ADDRESS.")
    limits = {"nvidia.com/gpu": machines.gpus_per_node} if machines.gpus_per_node else {}
    limits |= {"cpu": machines.cpus_per_rank * machines.ranks} if machines.cpus_per_rank else {}
    if machines.mem:
        limits["memory"] = machines.mem + ("i" if machines.mem[-1].isalpha() else "Mi")  # a plain number is MiB to SLURM
    pod = {
        "containers": [{
            "name": "pytorch", "image": machines.image, "workingDir": "/data",
            "command": ["torchrun", *_words(plan, machines)],  # which reads $PET_NNODES, $PET_NODE_RANK and so on of the operator
            "env": [{"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key", "optional": True}}}],
            "resources": {"limits": limits},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/dev/shm"}]}],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "layerzoo"}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}]}
    replica = {"restartPolicy": "OnFailure", "template": {"spec": pod}}
    replicas = {"Master": {"replicas": 1} | replica}
    if machines.nodes > 1:
        replicas["Worker"] = {"replicas": machines.nodes - 1} | replica
    return write({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": plan.title},
        "spec": {"nprocPerNode": str(machines.ranks), "pytorchReplicaSpecs": replicas}})


def skypilot(plan: Plan, machines: Machines) -> str:
    """A task for `sky launch` and `sky jobs launch`, run from a checkout of layerzoo.

    Raises:
        ValueError: for GPUs without a type.
    """
    if machines.gpus_per_node and not machines.gpu_type:
        expected = "a type such as H100, by which SkyPilot finds machines"
        raise bad_value("--gpu-type", got="none", expected=expected, do="Add --gpu-type NAME.")
    found = ["--nnodes=$SKYPILOT_NUM_NODES", "--node-rank=$SKYPILOT_NODE_RANK", '--master-addr="$(head -n1 <<<"$SKYPILOT_NODE_IPS")"']
    fixed = shlex.join([f"--nproc-per-node={machines.ranks}", f"--master-port={_PORT}", *_words(plan, machines)])
    resources = {"accelerators": f"{machines.gpu_type}:{machines.gpus_per_node}"} if machines.gpus_per_node else {}
    return write({
        "name": plan.title, "num_nodes": machines.nodes, "resources": resources, "workdir": ".", "setup": "python -m pip install -e .",
        "run": " ".join(["torchrun", *found, fixed])})


def _words(plan: Plan, machines: Machines) -> list[str]:
    """Arguments of torchrun."""
    if len(plan.entries) > 1:
        raise bad_value("--array", got=f"{len(plan.entries)} runs", expected="one run for a manifest", do="Render one manifest for each.")
    return [*fit_words(plan, machines), *options(plan.entries[0])]
