"""Every recipe that comes with layerzoo: its header, its claims, its model, and two steps of it."""

import numpy as np
import pytest
from PIL import Image

from layerzoo.cli import check_build
from layerzoo.recipe import NOT_IN_HASH, find_recipe, list_recipes, read_recipe, resolved, sha256

SHIPPED = [name for name in list_recipes() if find_recipe(name)[0].is_relative_to("recipes") or "recipes" in find_recipe(name)[0].parts]
ASKED = {
    "quickstart", "imagenet50/coatnet_micro", *(f"cifar100/{m}" for m in ("resnet18", "coatnet_micro", "vit_tiny")),
    *(f"imagenet/{m}" for m in ("resnet18", "coatnet_micro", "vit_tiny")),
    *(f"cifar10/{m}" for m in (
        "speedrun", "resnet18", "vit_tiny", "coatnet_micro", "cct_7", "nystrom", "performer", "linear_attention", "window_attention"))}


def test_all_are_there():
    assert set(SHIPPED) >= ASKED


@pytest.mark.parametrize("name", SHIPPED)
def test_header_says_what_meta_says(name):
    """The first comment lines state the summary, paper, command, hardware, time and accuracy of `meta:`, word for word."""
    meta = read_recipe(name).meta
    lines = find_recipe(name)[0].read_text(encoding="utf-8").splitlines()
    stated = ("paper", "command", "hardware", "time", "accuracy")
    assert lines[:6] == [f"# {meta.summary}", *(f"# {key}: {getattr(meta, key)}" for key in stated)]
    assert all(getattr(meta, key) for key in ("summary", *stated))
    assert meta.command == f"layerzoo fit {name}"


def name_of(spec):
    """The layer that a recipe names, alone or with its options; "" for none."""
    return spec["name"] if isinstance(spec, dict) else spec or ""


@pytest.mark.parametrize("name", SHIPPED)
def test_the_name_says_what_it_holds(name):
    recipe = read_recipe(name)
    data, _, model = name.rpartition("/")
    layer = name_of(recipe.model.layer)
    free = model in ("quickstart", "speedrun", "speedrun_wide") or data in ("lra/ladder", "attention_vs_conv")
    assert free or model in (recipe.model.name, layer)
    source, size = {
        "": ("digits", 32), **dict.fromkeys(("cifar10", "attention_vs_conv"), ("torch/cifar10", 32)), "cifar100": ("torch/cifar100", 32),
        "imagenet50": ("folder:data/imagenet50", 64), "imagenet": ("folder:data/imagenet", 224),
        **dict.fromkeys(("lra/image", "lra/ladder"), ("grey:torch/cifar10", 32))}[data]
    assert (recipe.data.source, recipe.data.img_size) == (source, size)
    assert recipe.runs == "runs" and recipe.logging.wandb == "auto" and (recipe.trainer.callbacks == [] or model == "quadratic")


@pytest.mark.parametrize("name", SHIPPED)
def test_it_builds_on_the_meta_device(name):
    model = check_build(read_recipe(name), name)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.img_size == (read_recipe(name).data.img_size,) * 2


@pytest.mark.parametrize("name", ["cifar10/nystrom", "cifar10/performer", "cifar10/linear_attention", "cifar10/window_attention"])
def test_recipes_that_compare_layers_differ_in_the_layer_alone(name):
    ours, base = resolved(read_recipe(name)), resolved(read_recipe("cifar10/vit_tiny"))
    assert ours["model"].pop("layer") != base["model"].pop("layer")
    del ours["meta"], base["meta"]
    assert ours == base


def test_the_arena_has_one_set_of_hyper_parameters():
    base = resolved(read_recipe("lra/image/mhsa"))
    for name in SHIPPED:
        if name.startswith("lra/image/"):
            ours = resolved(read_recipe(name))
            assert name_of(ours["model"]["layer"]) == name.rpartition("/")[2]
            ours["model"]["layer"], ours["meta"] = base["model"]["layer"], base["meta"]
            assert ours == base


def test_recipes_differ_in_what_is_hashed():
    assert len({sha256(read_recipe(name)) for name in SHIPPED}) == len(SHIPPED)
    assert set(NOT_IN_HASH) & {"model", "data", "task", "trainer"} == set()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six classes of four training and two test images of 48 x 40 pixels."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for c in range(6):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:The number of training batches")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(("lra/", "attention_vs_conv/learned_content"))) for n in SHIPPED])
def test_it_runs_two_steps(name, images, tmp_path):
    from layerzoo.train import run

    recipe = read_recipe(name, [
        f"data.source={'grey:' * name.startswith('lra/')}folder:{images}", "data.val_fraction=0", "data.batch_size=4", "data.eval_batch_size=6", "data.num_workers=1",
        "task.schedule.warmup_epochs=0", "trainer.max_epochs=1", "trainer.accelerator=cpu",
        "trainer.options={limit_train_batches: 2, limit_val_batches: 1}", "logging.wandb=disabled", f"runs={tmp_path}"])
    result = run.fit(recipe, recipe_name=name)
    assert {"test/loss", "test/top1", "test/top5"} <= result.metrics.keys()
    assert (result.checkpoint / "model.safetensors").is_file() and result.folder.is_relative_to(tmp_path / name)
