"""The command line: every verb is one call. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.util
import inspect
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from layerzoo.api import list_layers
from layerzoo.config import GREY, LOCAL, Recipe
from layerzoo.errors import RankLost, Refusal, WorkerLost, bad_value, unknown_name
from layerzoo.launch.cli import OPTIONS, add_launch
from layerzoo.models.presets import PRESETS, list_models
from layerzoo.pack import add_data
from layerzoo.quiet import quiet
from layerzoo.recipe import find_recipe, is_recipe, list_recipes, read_recipe, resolved, run_base
from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS
from layerzoo.report.catalogue import KINDS, costs, print_table, rows
from layerzoo.report.command import add_plot
from layerzoo.report.measured import new_path
from layerzoo.strict_yaml import RecipeError, write
from layerzoo.study.command import add_study

if TYPE_CHECKING:
    from torch import Tensor, nn

_OWN_OPTIONS = (
    "--help", "--fresh", "--resume", "--checkpoint", "--family", "--json", "--resolved", "--swap", "--img-size", "--num-classes",
    "--lengths", "--rounds", "--dim", "--batch", "--out", "--seeds", "--scale", "--query", "--shard-mb", *OPTIONS)
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ESTALE)
_ROOMS = (LAYERS, FFNS, POSITIONS, DOWNSAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done, 1 a loss that is not finite or a rank or a worker that is lost, 2 a recipe or usage that is wrong, 65 data refused, 74 storage, 77 refused for
        security, 130 interrupted. Any other fault leaves as an exception, which ends the process with 1.
    """
    parser = _parser()
    words, overrides = _split(parser, sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    if overrides and "overrides" not in args:
        parser.error(f"{args.verb} takes no --{overrides[0].partition('=')[0]}; `layerzoo {args.verb} --help` lists its options")
    args.overrides = overrides
    try:
        return args.call(args) or 0
    except Refusal as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        print(f"storage: got {error}, expected a place to write. Free space, or name another folder: --runs PATH.", file=sys.stderr)
        return 74
    except (FloatingPointError, RankLost, WorkerLost) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    what = "Vision layers under one contract: compose, train, log, save, pull."
    parser = argparse.ArgumentParser(prog="layerzoo", description=what, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, call: Callable, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(call=call)
        return added

    fit = verb("fit", _fit, "train a recipe, then test it")
    fit.add_argument("recipe", help="a name of `layerzoo list recipes`, or a .yaml file")
    begin = fit.add_mutually_exclusive_group()
    begin.add_argument("--fresh", action="store_true", help="begin a new run; else the newest of this recipe and seed goes on, if there is one")
    begin.add_argument("--resume", default="auto", metavar="PATH", help="go on with the run in this folder")
    for name, text in {"validate": "validation metrics of a checkpoint", "test": "test metrics of a checkpoint"}.items():
        verb(name, _evaluate, text).add_argument("recipe", help="a name of `layerzoo list recipes`, or a .yaml file")
    predict = verb("predict", _predict, "classes and probabilities of images, or of a recipe's test set")
    predict.add_argument("inputs", nargs="+", metavar="IMAGE|RECIPE", help="image files, or one recipe")
    for name in ("validate", "test", "predict"):
        verbs.choices[name].add_argument("--checkpoint", metavar="NAME", help="name, folder or address; else the newest run's")

    listing = verb("list", _list, "what there is")
    listing.add_argument("kind", choices=KINDS)
    listing.add_argument("--family", help="layers of one family only")
    listing.add_argument("--json", action="store_true")
    show = verb("show", _show, "all about a layer, model, recipe or checkpoint")
    show.add_argument("name")
    show.add_argument("--resolved", action="store_true", help="a recipe with its defaults filled in, as with any --section.key")
    show.add_argument("--swap", metavar="LAYER", help="of a model or recipe: what it costs before and after `lz.swap` puts this layer into it")
    copy = verb("recipe", _copy, "copy a recipe, to edit it")
    copy.add_argument("action", choices=["copy"])
    copy.add_argument("name")
    copy.add_argument("destination", help="a new file, or a folder")
    verb("check", _check, "the conformance kit on one layer").add_argument("layer", help="a name, or my_layer.py:ClassName")
    cost = verb("cost", _cost, "parameters, FLOPs and memory")
    cost.add_argument("name", help="a layer, model or recipe")
    cost.add_argument("--img-size", type=int, nargs="+", metavar="PIXELS", help="of the image; of the map for a layer")
    cost.add_argument("--num-classes", type=int, default=10)

    bench = verb("bench", _bench, "layers: time and memory beside exact attention; lra: accuracy on the image task of the Long Range Arena")
    bench.add_argument("action", choices=["layers", "lra"])
    bench.add_argument("names", nargs="*", metavar="LAYER", help="names; none = every efficient layer")
    bench.add_argument("--seeds", type=int, default=3, help="of lra, which also takes any --section.key VALUE of its recipes; 3")
    bench.add_argument("--lengths", type=_numbers, default=[1024, 4096, 16384], metavar="N,N,...", help="positions; 1024,4096,16384")
    for name, default in {"rounds": 5, "dim": 64, "batch": 1}.items():
        bench.add_argument(f"--{name}", type=int, default=default, help=f"{default}")
    bench.add_argument("--out", type=Path, help="a new folder for layers.csv and layers.png; bench-layers. Of lra, a new .csv; none")
    add_plot(verb)
    add_study(verb)
    add_launch(verb)
    add_data(verb)
    for name in ("fit", "validate", "test", "predict", "show", "bench", "study"):
        verbs.choices[name].add_argument(
            "--section.key", dest="overrides", metavar="VALUE", help="any key of the recipe, such as --model.layer nystrom")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _split(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[list[str], list[str]]:
    """A verb's own words, and the `--key value` or `--key=value` pairs of a recipe as "key=value"."""
    words, overrides = [], []
    rest = iter(argv)
    for word in rest:
        key, equals, value = word.partition("=")
        if not key.startswith("--") or key in _OWN_OPTIONS:
            words.append(word)
            continue
        value = value if equals else next(rest, "--")
        if not equals and value.startswith("--"):
            parser.error(f"{key} needs a value: {key} VALUE")
        overrides.append(f"{key[2:]}={value}")
    return words, overrides


def _fit(args: argparse.Namespace) -> None:
    recipe, name = _start(args)
    from layerzoo.train import run

    result = run.fit(recipe, recipe_name=name, resume="never" if args.fresh else args.resume)
    checkpoint = shlex.quote(str(result.checkpoint))
    _say(f"{_metrics(result.metrics)}\nrun   {result.folder}\nnext  layerzoo predict IMAGE --checkpoint {checkpoint}")


def _evaluate(args: argparse.Namespace) -> None:
    recipe, name = _start(args)
    from layerzoo.train import run

    split = "val" if args.verb == "validate" else "test"
    _say(_metrics(run.evaluate(recipe, recipe_name=name, checkpoint=_checkpoint(args, recipe, name), split=split)))


def _start(args: argparse.Namespace) -> tuple[Recipe, str]:
    """The recipe, announced before anything heavy is imported, its model checked before data is touched."""
    recipe, name = read_recipe(args.recipe, args.overrides), find_recipe(args.recipe)[1]
    if recipe.data.source.removeprefix(GREY).startswith(LOCAL):
        from layerzoo.data.sources import check_there

        check_there(recipe.data.source)
    _say(f"{args.verb} {name}: {recipe.model.name} on {recipe.data.source}, {recipe.trainer.max_epochs} epochs, seed {recipe.seed}")
    quiet()
    check_build(recipe, args.recipe)
    return recipe, name


def check_build(recipe: Recipe, where: str) -> nn.Module:
    """The model of a recipe on the meta device: what only constructors can refuse is refused before data is touched.

    Raises:
        RecipeError: with the constructor's message.
    """
    import torch

    from layerzoo.data.datamodule import ImageData
    from layerzoo.models import create_model
    from layerzoo.tasks.optim import create_optimizer

    part = "model"
    try:
        with torch.device("meta"):
            model = create_model(**resolved(recipe)["model"], num_classes=10, img_size=recipe.data.img_size)
        if recipe.trainer.strategy == "fsdp":
            from layerzoo.train.sharded import check_parts

            part = "trainer.strategy"
            check_parts(model)
        part = "task.optimizer"
        create_optimizer(model, recipe.task.optimizer)
        part = "data"
        ImageData(recipe.data, recipe.seed)
        part = "trainer.callbacks"
        for entry in recipe.trainer.callbacks:
            _check_callback(entry)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        got = " ".join(str(error).split())
        raise RecipeError(where, part, got=got, expected="options that fit together", do="Correct what it names.") from error
    return model


def _check_callback(entry: dict) -> None:
    from pytorch_lightning import Callback

    module, _, name = entry["class_path"].rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    if not issubclass(cls, Callback):
        expected = "a subclass of pytorch_lightning.Callback"
        raise bad_value("class_path", got=entry["class_path"], expected=expected, do="Name another class.")
    inspect.signature(cls).bind(**entry.get("init_args", {}))


def _checkpoint(args: argparse.Namespace, recipe: Recipe, name: str) -> str:
    """As given, else that of the newest run of this recipe."""
    if args.checkpoint:
        return args.checkpoint
    base = run_base(recipe, name)
    found = [path for pattern in (base.name, f"{base.name}-*") for path in base.parent.glob(f"{pattern}/checkpoint")]
    if not found:
        raise bad_value(
            "--checkpoint", got="none", expected=f"a finished run of {name} with these options below {recipe.runs}/",
            do=f"Run `layerzoo fit {name}`, or pass --checkpoint NAME.")
    return str(max(found, key=lambda path: path.stat().st_mtime))


def _metrics(metrics: dict[str, float]) -> str:
    return "\n".join(f"{name:10}  {value:.4f}" for name, value in sorted(metrics.items()))


def _say(text: str) -> None:
    """Print once, however many ranks run."""
    if not any(int(os.environ.get(rank) or 0) for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        print(text, flush=True)


def _predict(args: argparse.Namespace) -> None:
    """Three likeliest classes of each image; of a recipe, the likeliest of each test image in its order."""
    if len(args.inputs) == 1 and is_recipe(args.inputs[0]):
        args.recipe = args.inputs[0]
        recipe, name = _start(args)
        from layerzoo.train import run

        classes, probabilities = run.predict(recipe, recipe_name=name, checkpoint=_checkpoint(args, recipe, name))
        inputs, count = [str(i) for i in range(len(probabilities))], 1
    else:
        if not args.checkpoint:
            do = "`layerzoo list checkpoints` lists those to pull."
            raise bad_value("--checkpoint", got="none", expected="a name, folder or address", do=do)
        from layerzoo.hub import load

        model = load(args.checkpoint)
        classes, probabilities = model.manifest["classes"], classify_images(model, args.inputs)
        inputs, count = args.inputs, 3
    top = probabilities.topk(min(count, len(classes)))
    for name, shares, places in zip(inputs, top.values.tolist(), top.indices.tolist()):
        print(name, *(f"{classes[k]}\t{share:.4f}" for share, k in zip(shares, places)), sep="\t")


def classify_images(model: nn.Module, paths: list[str]) -> Tensor:
    """Class probabilities (B, K) of image files.

    Raises:
        DataRefused: for a file that is no whole image.
    """
    import torch

    from layerzoo.data.images import images_for

    with torch.inference_mode():
        return model(images_for(model, paths)).softmax(1)


def _list(args: argparse.Namespace) -> None:
    found = rows(args.kind, args.family)
    print(json.dumps(found, indent=1)) if args.json else print_table(found)


def _show(args: argparse.Namespace) -> None:
    name = args.name
    swapped = costs(name, swap=args.swap) if args.swap else None  # what it refuses, it refuses before anything is printed
    room = next((r for r in _ROOMS if name in r.names()), None)
    if room is not None:
        card = {k: v for k, v in dataclasses.asdict(room.card(name)).items() if k not in ("name", "sizes")}
        options = room.options(name) or {"none": ""}
        facts = [f"  {k:11} {v}" for k, v in card.items()] + ["\noptions"] + [f"  {k:11} {v}" for k, v in options.items()]
        print(name, *facts, "", sep="\n", flush=True)
        print(inspect.getdoc(room.find(name)))
    elif name in PRESETS:
        print(f"{name}: {inspect.getdoc(PRESETS[name])}\n", write(PRESETS[name](32)), sep="\n", flush=True)
    elif is_recipe(name):
        recipe = read_recipe(name, args.overrides)
        whole = args.resolved or args.overrides
        print(write(resolved(recipe)) if whole else find_recipe(name)[0].read_text(encoding="utf-8"), end="")
    else:
        print(write(_published(name)), end="")
    if swapped or name in (*LAYERS.names(), *FFNS.names(), *PRESETS):
        print_table(swapped or costs(name))


def _published(name: str) -> dict:
    from layerzoo.hub import list_checkpoints, published

    if name not in list_checkpoints():
        names = [n for room in _ROOMS for n in room.names()] + list_models() + list_recipes() + list_checkpoints()
        raise unknown_name("name", name, names, "`layerzoo list layers|models|recipes|checkpoints`")
    return published(name)


def _cost(args: argparse.Namespace) -> None:
    names = LAYERS.names() + FFNS.names() + list_models() + list_recipes()
    if args.name not in names and not is_recipe(args.name):
        raise unknown_name("name", args.name, names, "`layerzoo list layers|models|recipes`")
    print_table(costs(args.name, args.img_size, args.num_classes))


def _copy(args: argparse.Namespace) -> None:
    """Never writes over a file."""
    source = find_recipe(args.name)[0]
    destination = Path(args.destination)
    destination = new_path(destination / source.name if destination.is_dir() else destination)
    shutil.copyfile(source, destination)
    print(f"{destination}\nnext  layerzoo fit {shlex.quote(str(destination))}")


def _bench(args: argparse.Namespace) -> None:
    if args.action == "lra":
        from layerzoo.report.bench_lra import bench_lra, methods
        from layerzoo.report.measured import write_rows

        path = args.out and new_path(args.out)
        rows = bench_lra(args.names or methods(), args.seeds, args.overrides)
        print_table(rows)
        if path:
            write_rows(rows, path)
        return
    if args.overrides:
        raise bad_value("bench layers", got=f"--{args.overrides[0]}", expected="options of its own alone", do="`layerzoo bench --help` lists them.")
    folder = new_path(args.out or Path("bench-layers"))
    from layerzoo.report.bench_layers import bench_into

    names = args.names or list_layers("efficient")
    print_table(bench_into(folder, names, args.lengths, dim=args.dim, batch=args.batch, rounds=args.rounds))
    print(f"{folder / 'layers.csv'}\n{folder / 'layers.png'}")


def _check(args: argparse.Namespace) -> int:
    from layerzoo.testing import ConformanceError, check_layer

    try:
        results = check_layer(_load_class(args.layer) if ".py:" in args.layer else args.layer)
    except ConformanceError as error:
        print(error, file=sys.stderr)
        return 1
    print_table([{"check": r.name, "holds": r.ok, "detail": r.detail, "seconds": f"{r.seconds:.2f}"} for r in results])
    print(f"{args.layer} passes {len(results)} of {len(results)} checks")
    return 0


def _load_class(address: str) -> type:
    """The class of my_layer.py:ClassName, a file of the user's own."""
    path, _, name = address.rpartition(":")
    if not Path(path).is_file():
        expected = "the path of a Python file, a colon and a class"
        raise bad_value("layer", got=repr(address), expected=expected, do="Write my_layer.py:ClassName.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, name, None), type):
        raise unknown_name(f"class of {path}", name, [n for n, v in vars(module).items() if isinstance(v, type)], path)
    return getattr(module, name)
