"""What a recipe may say, as typed dataclasses. Imports nothing heavy, so a wrong recipe is refused in a moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

GREY = "grey:"  # before a source: its images in grey
LOCAL = ("folder:", "wds:")  # sources that are a path


@dataclass
class MetaConfig:
    """What a recipe claims. `time` and `accuracy` say "not yet measured" until they are.

    Args:
        summary: one sentence.
        paper: arXiv id or address of the method, "" if none.
        command: the exact command that gives the result.
        hardware: where it was measured.
        time: training time there.
        accuracy: test accuracy there, with the number of seeds.
    """

    summary: str
    paper: str = ""
    command: str = ""
    hardware: str = ""
    time: str = "not yet measured"
    accuracy: str = "not yet measured"


@dataclass
class ModelConfig:
    """A preset and what to change in it; classes, channels and image size come from the data.

    Args:
        name: preset, one of `layerzoo.list_models()`.
        layer: a layer name, {name: ..., option: ...}, or one entry per stage; None = the preset's.
        ffn: as layer, for the per-position unit.
        position: position encoding.
        stem: stem name or dict.
        downsample: downsample name or dict (pyramids).
        drop_path: probability of dropping a residual branch, rising linearly with depth to this value.
        layer_scale: initial value of the per-channel residual scale; None = the preset's.
        options: any other option of the preset's model (depth, dim, depths, dims, norm ...).
    """

    name: str
    layer: str | dict | list | None = None
    ffn: str | dict | list | None = None
    position: str | dict | None = None
    stem: str | dict | None = None
    downsample: str | dict | None = None
    drop_path: float | None = None
    layer_scale: float | None = None
    options: dict = field(default_factory=dict)


@dataclass
class AugmentConfig:
    """Training augmentation, drawn per sample.

    Args:
        crop_padding: reflect padding in pixels before a random crop back to img_size; 0 = none.
        flip: "random" per sample, "alternating" (each image flips every other epoch, arXiv 2404.00498), or "none".
        cutout: side of the erased square in pixels; 0 = none.
        mixup: Beta parameter of mixup; 0 = none.
        cutmix: Beta parameter of CutMix; 0 = none.
        resized_crop: smallest area fraction of a random resized crop (streaming only); 0 = none.
        randaugment: timm's policy string such as "rand-m9-mstd0.5-inc1" (streaming only); "" = none.
        color_jitter: strength of colour jitter (streaming only); 0 = none.
    """

    crop_padding: int = 0
    flip: Literal["random", "alternating", "none"] = "none"
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    resized_crop: float = 0.0
    randaugment: str = ""
    color_jitter: float = 0.0


@dataclass
class DataConfig:
    """Where images come from and how they are fed.

    Args:
        source: "digits", "folder:PATH", "wds:PATH", or a scheme of timm.data.create_dataset such as "torch/cifar10" or "hfds/..."; any of these
            after "grey:" for grey images.
        img_size: height and width in pixels given to the model.
        batch_size: samples per optimiser step over all devices.
        eval_batch_size: samples per forward pass in evaluation.
        pipeline: "memory" (decoded once, kept as uint8), "streaming" (workers), or "auto" by size.
        num_workers: decoding processes (streaming).
        worker_timeout: seconds without an image from any of them before the run ends.
        val_fraction: share of the training set held out, class-balanced, where the source has no val split; 0 = validate on test.
        train_fraction: class-balanced share of the training set to use.
        cache: keep the decoded set under the user's cache folder.
        max_unreadable: training images that may be broken; the next one of its class stands in for each.
        augment: training augmentation.
    """

    source: str
    img_size: int = 32
    batch_size: int = 128
    eval_batch_size: int = 500
    pipeline: Literal["auto", "memory", "streaming"] = "auto"
    num_workers: int = 2
    worker_timeout: float = 40
    val_fraction: float = 0.0
    train_fraction: float = 1.0
    cache: bool = True
    max_unreadable: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class OptimizerConfig:
    """A timm optimiser.

    Args:
        name: one of timm.optim.list_optimizers(), such as sgd, adamw, muon.
        lr: peak learning rate, for the recipe's batch_size unless it is scaled.
        weight_decay: applied to matrices and kernels only, never to biases, norms, tables and scales.
        momentum: of SGD and Muon.
        lr_scaling: how the peak follows data.batch_size: "linear" (arXiv 1706.02677), "sqrt", or "none".
        lr_batch_size: images per step that `lr` is meant for where it is scaled.
        options: further options of that optimiser (nesterov, betas ...).
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    lr_batch_size: int = 256
    options: dict = field(default_factory=dict)


@dataclass
class ScheduleConfig:
    """Learning rate over optimiser steps.

    Args:
        name: "cosine", "linear" (warm-up up, then linearly down: the triangular schedule), or "constant".
        warmup_epochs: linear warm-up, fractions allowed.
        start: first learning rate as a share of the peak; with 0, the first step of a warm-up changes nothing.
        end: last learning rate as a share of the peak.
    """

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    start: float = 0.0
    end: float = 0.0


@dataclass
class TaskConfig:
    """Supervised classification.

    Args:
        label_smoothing: in [0, 1).
        ema_decay: decay of the averaged weights, which are then evaluated and saved; 0 = none.
        tta: test-time augmentation: "none", "flip" (mean of both mirror images), or "flip_shift" (airbench's six views).
        channels_last: memory format of the model and its input.
        compile: torch.compile the model.
        optimizer: a timm optimiser.
        schedule: learning rate over steps.
    """

    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    tta: Literal["none", "flip", "flip_shift"] = "none"
    channels_last: bool = True
    compile: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass
class TrainerConfig:
    """Lightning's Trainer; `options` takes any of its other arguments.

    Args:
        max_epochs: passes over the training set.
        accelerator: cpu, gpu, mps, tpu, or auto.
        devices: a count, or "auto" for all there are.
        num_nodes: machines.
        strategy: "ddp"; "fsdp", which is FSDP2: each rank keeps a part of weights, gradients and optimiser states; "auto"; or
            another that Lightning knows.
        precision: "32-true", "bf16-mixed", "16-mixed" and so on, as Lightning names them; "auto" = "bf16-mixed" where the
            device multiplies bfloat16 itself, else "32-true": emulated, it takes a dozen times longer.
        gradient_clip_val: largest gradient norm; None = no clipping.
        accumulate_grad_batches: batches per optimiser step.
        log_every_n_steps: steps between two readings of the training metrics.
        check_val_every_n_epoch: epochs between validations.
        save_minutes: minutes between two training checkpoints within an epoch.
        rank_timeout: seconds to wait for another rank before all end.
        callbacks: further callbacks as {class_path: ..., init_args: {...}} from the allowed packages.
        options: any other argument of pytorch_lightning.Trainer.
    """

    max_epochs: int = 10
    accelerator: Literal["auto", "cpu", "gpu", "mps", "tpu"] = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["auto", "32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"] = "32-true"
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    log_every_n_steps: int = 50
    check_val_every_n_epoch: int = 1
    save_minutes: float = 10
    rank_timeout: float = 300
    callbacks: list[dict] = field(default_factory=list)
    options: dict = field(default_factory=dict)


@dataclass
class LoggingConfig:
    """Where metrics go besides metrics.jsonl, which is always written.

    Args:
        wandb: "auto" (online with an API key, else offline), "online", "offline" or "disabled".
        project: W&B project.
        log_model: upload the checkpoint folder as an artifact.
        wrong_predictions: number of wrongly classified test images in the logged grid.
    """

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "layerzoo"
    log_model: bool = False
    wrong_predictions: int = 16


@dataclass
class Recipe:
    """One YAML file = one result.

    Args:
        meta: what the recipe claims.
        model: preset and changes.
        data: source and pipeline.
        task: loss, optimiser, schedule.
        trainer: Lightning's Trainer.
        logging: W&B.
        seed: of initialisation, order and augmentation.
        runs: folder that holds the run folders.
    """

    meta: MetaConfig
    model: ModelConfig
    data: DataConfig
    task: TaskConfig = field(default_factory=TaskConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    seed: int = 0
    runs: str = "runs"
