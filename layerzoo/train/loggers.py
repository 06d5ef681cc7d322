"""Where metrics go: metrics.jsonl always, W&B where it can."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from layerzoo.config import LoggingConfig
from layerzoo.train.storage import stored


class MetricsFile(Logger):
    """Appends each set of metrics to metrics.jsonl: one JSON object per line with step, epoch, time and the metrics.

    Nothing is ever deleted. A resumed run repeats the steps after its checkpoint; a row of a step and names that stand
    in the file already is not written again.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"
        self.written: set[tuple] | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, "epoch": int(metrics.get("epoch", 0)), "time": round(time.time(), 3)}
        row |= {name: value if math.isfinite(value) else str(value) for name, value in metrics.items() if name != "epoch"}
        with stored(self.path), self.path.open("a", encoding="utf-8") as file:
            if self.written is None:
                self.written = {_key(row) for row in read_metrics(self.path)}
                if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                    file.write("\n")  # the last line was torn by a kill
            if _key(row) not in self.written:
                self.written.add(_key(row))
                file.write(json.dumps(row, allow_nan=False) + "\n")

    def log_hyperparams(self, params: object) -> None:
        """Nothing: recipe.yaml holds them."""


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, less lines torn by a kill."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _key(row: dict) -> tuple:
    return row["step"], *sorted(row.keys())


def _patient(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(self: PatientWandbLogger, *args: object, **options: object) -> None:
        if self.working:
            try:
                method(self, *args, **options)
            except Exception as error:  # noqa: BLE001  W&B names no base of its errors: a service that died gives a dozen kinds
                self.working = False
                print(f"W&B: stopped ({type(error).__name__}: {error}); the run goes on, and metrics.jsonl is complete", flush=True)

    return call


class PatientWandbLogger(WandbLogger):
    """W&B whose failures never stop a run: the first is said, after which nothing more is sent."""

    working = True
    log_metrics = _patient(WandbLogger.log_metrics)
    log_hyperparams = _patient(WandbLogger.log_hyperparams)
    log_image = _patient(WandbLogger.log_image)

    @_patient
    def upload(self, folder: Path, name: str, metrics: dict[str, float]) -> None:
        """A checkpoint folder, as an artifact of type "model"."""
        import wandb

        artifact = wandb.Artifact(name, type="model", metadata=metrics)
        artifact.add_dir(str(folder))
        self.experiment.log_artifact(artifact)

    @_patient
    def finish(self, code: int) -> None:
        """End the run with an exit code."""
        self.experiment.finish(exit_code=code)


def create_wandb(config: LoggingConfig, folder: Path, *, name: str, group: str) -> PatientWandbLogger | None:
    """A W&B logger whose run has begun, online if that works, else offline; None where W&B is disabled, not installed or broken.

    "auto" follows WANDB_MODE if that is set. It never asks, and waits at most half a minute for a server. The run's id
    is kept in the folder, so that a resumed run continues its curves.

    Args:
        config: mode and project.
        folder: the run folder.
        name: of the run.
        group: of runs to compare.
    """
    mode = os.environ.get("WANDB_MODE", "auto") if config.wandb == "auto" else config.wandb
    if mode == "disabled":
        return None
    if importlib.util.find_spec("wandb") is None:
        print("W&B: not installed, so metrics.jsonl alone")
        return None
    identity = _identity(folder)
    try:
        return _start(config, folder, mode, identity, name=name, group=group)
    except Exception as error:  # noqa: BLE001  as in `_patient`
        print(f"W&B: not started ({type(error).__name__}: {error}); the run goes on, and metrics.jsonl is complete", flush=True)
        return None


def _identity(folder: Path) -> str:
    """The id of the W&B run, the same whenever this run is resumed."""
    kept = Path(folder) / "wandb_id"
    with stored(kept):
        if not (kept.exists() and kept.read_text(encoding="utf-8")):  # empty after a power cut
            kept.write_text(secrets.token_hex(4), encoding="utf-8")
        return kept.read_text(encoding="utf-8")


def _start(config: LoggingConfig, folder: Path, mode: str, identity: str, **names: str) -> PatientWandbLogger:
    import wandb

    reason = "as asked" if mode in ("offline", "dryrun") else _why_offline()
    if not reason:
        try:
            return _begin(config, folder, "online", identity, **names)
        except Exception as error:  # noqa: BLE001  as in `_patient`
            reason = f"no run could be started: {(str(error) or type(error).__name__).splitlines()[0]}"
            wandb.teardown()  # which gives the run's id free again
    logger = _begin(config, folder, "offline", identity, **names)
    print(f"W&B: offline ({reason}); to upload: wandb sync {Path(logger.experiment.dir).parent}")
    return logger


def _begin(config: LoggingConfig, folder: Path, mode: str, identity: str, *, name: str, group: str) -> PatientWandbLogger:
    import wandb

    settings = wandb.Settings(init_timeout=10, finish_timeout=60, silent=mode == "offline")
    run = wandb.init(
        project=config.project, name=name, group=group, id=identity, dir=folder, mode=mode, resume="allow",
        settings=settings)  # not left to WandbLogger, which passes an option that W&B deprecates
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return PatientWandbLogger(experiment=run, project=config.project, name=name, id=run.id, save_dir=folder)


def _why_offline() -> str:
    """Why W&B cannot be online, "" if it can. Unlike wandb.login, it asks no server before it knows of a key."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    if not (settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url)):
        return "no API key"
    return "" if _answers(settings.base_url, seconds=5) else f"{settings.base_url} does not answer"


def _answers(url: str, seconds: float) -> bool:
    """Whether anything that speaks HTTP is there; in a thread, since a server that drips defeats a socket's time limit."""
    heard = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # a refusal is an answer
        except OSError:
            return
        heard.set()

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(seconds)
    return heard.is_set()
