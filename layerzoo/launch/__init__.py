"""Launching: SLURM jobs, processes of this machine, manifests of clusters, sweeps."""
