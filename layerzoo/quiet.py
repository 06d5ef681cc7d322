"""What libraries say at every start and nobody needs to read."""

from __future__ import annotations

import logging
import os
import warnings

_NOISE = (r".*srun.*", r".*smaller than the logging interval.*", r".*litlogger.*", r".*LeafSpec.*", r".*does not have many workers.*")


def quiet() -> None:
    """Silence Lightning's and W&B's advertisements, and let idle threads wait."""
    for noise in _NOISE:
        warnings.filterwarnings("ignore", noise)
    for logger in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while a neighbour runs cost up to twenty times their work
