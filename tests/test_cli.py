"""The command line: what each verb prints, imports and returns."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from layerzoo import cli
from layerzoo.registry import LAYERS


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = cli.main(list(words))
    return code, *capsys.readouterr()


def usage(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert caught.value.code == 2
    return capsys.readouterr().err


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, **options)


def test_listings_and_refusals_import_nothing_heavy():
    calls = [
        ["list", "layers"], ["list", "models"], ["list", "recipes"], ["list", "checkpoints"], ["show", "quickstart", "--resolved"],
        ["fit", "quickstart", "--model.layer", "nystrm"], ["fit", "nowhere"], ["show", "nothing"]]
    code = f"import sys; from layerzoo import cli; codes = [cli.main(c) for c in {calls}]\n"
    code += "print(codes, sorted({'torch', 'pytorch_lightning', 'timm', 'wandb', 'numpy', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    assert python(code).stderr.splitlines()[-1] == "[0, 0, 0, 0, 0, 2, 2, 2] []"


def test_the_first_message_comes_before_heavy_imports(tmp_path):
    code = (
        "import builtins, sys; from layerzoo import cli\n"
        "def watched(text, **options): sys.stderr.write(f'{text} {\"torch\" in sys.modules}\\n')\n"
        "builtins.print = watched\n"
        "cli.check_build = lambda *a: sys.exit(0)\n"
        "cli.main(['fit', 'quickstart'])")
    assert python(code).stderr == "fit quickstart: hybrid_nano on digits, 12 epochs, seed 0 False\n"


def test_list_layers(capsys):
    code, out, _ = run(capsys, "list", "layers")
    assert code == 0
    assert all(re.search(rf"^ *{name} ", out, re.MULTILINE) for name in LAYERS.names())
    measured = r"N\^\d\.\d\d N\^\d\.\d\d +16,640"
    assert re.search(rf"mhsa +attention +Multi-head self-attention +1706.03762 +2017 +N\^2 +N\^1 +{measured} +yes +yes +no +permutation", out)
    rows = json.loads(run(capsys, "list", "layers", "--family", "conv", "--json")[1])
    assert [row["name"] for row in rows][:2] == ["conv", "coord_conv"] and rows[0]["mask"] is False


def test_list_models_recipes_checkpoints(capsys):
    assert "resnet18" in run(capsys, "list", "models")[1]
    rows = {row["name"]: row for row in json.loads(run(capsys, "list", "recipes", "--json")[1])}
    assert rows["cifar10/resnet18"]["model"] == "resnet18" and rows["cifar10/resnet18"]["data"] == "torch/cifar10"
    assert isinstance(json.loads(run(capsys, "list", "checkpoints", "--json")[1]), list)


def test_a_recipe_that_will_not_run_is_listed(capsys, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("model: resnet18\n")
    monkeypatch.chdir(tmp_path)
    row = next(r for r in json.loads(run(capsys, "list", "recipes", "--json")[1]) if r["name"] == "mine")
    assert row == {"name": "mine", "model": "", "data": "", "hardware": "", "time": "not yet measured", "accuracy": "not yet measured"}


def test_show_a_layer(capsys):
    code, out, _ = run(capsys, "show", "window_attention")
    assert code == 0
    for text in ("Shifted-window attention", "2103.14030", "window_size int", "y_i = W_o concat_h", "**Cost**", "64 x 32 x 32", "MFLOP"):
        assert text in out
    assert out.count("64 x ") == 3


def test_show_a_model_and_a_recipe(capsys):
    out = run(capsys, "show", "hybrid_nano")[1]
    assert "The quickstart's model" in out and "depthwise_conv" in out and "3 x 224 x 224" in out
    assert run(capsys, "show", "quickstart")[1].startswith("# A small hybrid")
    assert "accumulate_grad_batches: 1" in run(capsys, "show", "quickstart", "--resolved")[1]
    out = run(capsys, "show", "quickstart", "--trainer.devices", "4", "--seed=7")[1]
    assert "  devices: 4\n" in out and "seed: 7\n" in out and "  accumulate_grad_batches: 1\n" in out


def test_show_what_a_swap_costs(capsys):
    out = run(capsys, "show", "quickstart", "--swap", "pooling")[1]
    assert out.startswith("# A small hybrid") and re.search(r"3 x 32 x 32 +108,682 -> 75,402 \(0.69x\) .* MiB \(0\.\d\dx\)", out), out
    code, out, err = run(capsys, "show", "nystrom", "--swap", "mhsa")
    assert (code, out) == (2, "")
    assert err == "--swap: got mhsa into nystrom, expected a model or a recipe to put it into. `layerzoo list models` lists them.\n"
    assert run(capsys, "show", "vit_tiny", "--swap", "mhsaa")[2].startswith("layers name: got 'mhsaa', expected a known name such as mhsa")


def test_show_an_unknown_name(capsys):
    code, out, err = run(capsys, "show", "nystrm")
    assert (code, out) == (2, "")
    assert err.startswith("name: got 'nystrm', expected a known name such as nystrom, ")
    assert err.endswith("`layerzoo list layers|models|recipes|checkpoints` lists all.\n")


def test_cost(capsys):
    out = run(capsys, "cost", "resnet18", "--img-size", "32", "64", "--num-classes", "100")[1]
    assert out.count("11,220,132") == 2
    assert "3 x 32 x 32" in run(capsys, "cost", "cifar10/resnet18")[1]
    assert run(capsys, "cost", "mhsa", "--img-size", "4")[1].count("64 x 4 x 4") == 1
    refused = run(capsys, "cost", "resnet81")[2]
    assert refused.startswith("name: got 'resnet81', expected a known name such as resnet18, ")
    assert refused.endswith("`layerzoo list layers|models|recipes`" + " lists all.\n")


def test_families_are_of_layers(capsys):
    assert run(capsys, "list", "models", "--family", "conv")[2] == (
        "--family: got conv of models, expected layers, which alone have families. Leave it out.\n")
    assert run(capsys, "list", "layers", "--family", "cnov")[0] == 2


def test_recipe_copy(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from layerzoo.recipe import read_recipe, sha256

    assert run(capsys, "recipe", "copy", "cifar10/resnet18", "mine.yaml") == (0, "mine.yaml\nnext  layerzoo fit mine.yaml\n", "")
    assert sha256(read_recipe("mine.yaml")) == sha256(read_recipe("cifar10/resnet18"))
    (tmp_path / "mine.yaml").write_text("kept")
    refused = "destination: got mine.yaml, which exists, expected a new file. Choose another name; nothing was written.\n"
    assert run(capsys, "recipe", "copy", "quickstart", "mine.yaml") == (2, "", refused)
    assert (tmp_path / "mine.yaml").read_text() == "kept"
    assert run(capsys, "recipe", "copy", "cifar10/resnet18", ".")[1].startswith("resnet18.yaml\n")
    assert run(capsys, "recipe", "copy", "quickstart", "no/such.yaml")[2] == (
        "destination: got no/such.yaml, expected a file in a folder that exists. Create no first.\n")


def test_check_a_layer_of_ones_own(capsys, tmp_path, monkeypatch):
    import layerzoo.testing

    seen = []
    monkeypatch.setattr(layerzoo.testing, "check_layer", lambda layer: seen.append(layer) or [])
    path = tmp_path / "mine.py"
    path.write_text("from layerzoo.layers.mixing.identity import Identity\nclass Mine(Identity):\n    pass\n")
    assert run(capsys, "check", "mhsa")[0] == 0 and run(capsys, "check", f"{path}:Mine")[0] == 0
    assert seen[0] == "mhsa" and seen[1].__name__ == "Mine"
    assert run(capsys, "check", f"{path}:Mnie")[2].startswith(f"class of {path}: got 'Mnie', expected a known name such as Mine")
    refused = "layer: got 'nowhere.py:Mine', expected the path of a Python file, a colon and a class. Write my_layer.py:ClassName.\n"
    assert run(capsys, "check", "nowhere.py:Mine") == (2, "", refused)


def test_check_prints_each_check_and_fails(capsys, monkeypatch):
    import layerzoo.testing
    from layerzoo.testing import CheckResult, ConformanceError

    results = [CheckResult("shape", True, "holds", 0.01), CheckResult("mask", False, "got 1, expected 0", 0.02)]
    monkeypatch.setattr(layerzoo.testing, "check_layer", lambda layer: results[:1])
    code, out, _ = run(capsys, "check", "mhsa")
    assert code == 0 and re.search(r"shape +yes +holds", out) and "mhsa passes 1 of 1 checks" in out

    def fail(layer):
        raise ConformanceError("mhsa", results)

    monkeypatch.setattr(layerzoo.testing, "check_layer", fail)
    code, out, err = run(capsys, "check", "mhsa")
    assert code == 1 and err == "mhsa fails 1 of 2 checks:\n  mask: got 1, expected 0\n"


@pytest.mark.parametrize("words, message", [
    ([], "the following arguments are required: VERB"), (["fti"], "invalid choice: 'fti'"),
    (["fit"], "the following arguments are required: recipe"), (["list", "layer"], "invalid choice: 'layer'"),
    (["fit", "quickstart", "--seed"], "--seed needs a value: --seed VALUE"),
    (["fit", "quickstart", "--seed", "--runs", "x"], "--seed needs a value: --seed VALUE"),
    (["cost", "mhsa", "--seed", "1"], "cost takes no --seed; `layerzoo cost --help` lists its options"),
    (["fit", "quickstart", "--fresh", "--resume", "runs/a"], "argument --resume: not allowed with argument --fresh"),
    (["fit", "quickstart", "extra"], "unrecognized arguments: extra")])
def test_usage_errors(capsys, words, message):
    assert message in usage(capsys, *words)


def test_overrides_are_split_from_a_verbs_own_words():
    typed = ["fit", "--model.layer", "nystrom", "q", "--seed=-1", "--resume", "runs/a", "--fresh", "--meta.command=a=b", "--task.x", "-2"]
    words, overrides = cli._split(cli._parser(), typed)
    assert words == ["fit", "q", "--resume", "runs/a", "--fresh"]
    assert overrides == ["model.layer=nystrom", "seed=-1", "meta.command=a=b", "task.x=-2"]


BUILD = {
    "unknown optimiser": (["task.optimizer.name=sdg"], "quickstart: task.optimizer\n  got: optimizer: got 'sdg', expected a known name"),
    "optimiser option": (
        ["task.optimizer.options.epz=1"],
        "quickstart: task.optimizer\n  got: option of adamw: got 'epz', expected a known name such as eps"),
    "heads": (["model.layer={name: mhsa, num_heads: 7}"], "quickstart: model\n  got: num_heads: got 7, expected a divisor of dim=32."),
    "stages": (["model.layer=[mhsa]"], "quickstart: model\n  got: layer: got 1 entries, expected one per stage"),
    "parts": (
        ["model.layer=acmix", "trainer.strategy=fsdp"],
        "quickstart: trainer.strategy\n  got: trainer.strategy: got fsdp, and stages.0.blocks.0.layer.alpha without axes"),
    "class": (
        ["trainer.callbacks=[{class_path: pytorch_lightning.callbacks.Tmer}]"],
        "has no attribute 'Tmer'\n  expected: options that fit together\n  do: Correct what it names."),
    "no callback": (
        ["trainer.callbacks=[{class_path: torch.nn.Linear}]"],
        "got: class_path: got torch.nn.Linear, expected a subclass of pytorch_lightning.Callback. Name another class."),
    "argument": (
        ["trainer.callbacks=[{class_path: pytorch_lightning.callbacks.EarlyStopping, init_args: {monitr: a}}]"],
        "quickstart: trainer.callbacks\n  got: missing a required argument: 'monitor'"),
    "data": (["data.augment.randaugment=rand-m9", "data.pipeline=memory"], "quickstart: data\n  got: data.pipeline"),
}


@pytest.mark.parametrize("case", BUILD)
def test_what_only_constructors_can_refuse_is_refused_before_data(case, monkeypatch):
    from layerzoo.data.datamodule import ImageData
    from layerzoo.recipe import RecipeError, read_recipe

    monkeypatch.setattr(ImageData, "setup", lambda *a: pytest.fail("data was touched"))
    overrides, message = BUILD[case]
    with pytest.raises(RecipeError) as caught:
        cli.check_build(read_recipe("quickstart", overrides), "quickstart")
    assert message in str(caught.value) and len(str(caught.value).splitlines()) <= 6


def test_a_missing_folder_is_refused_before_heavy_imports(tmp_path):
    code = "import sys; from layerzoo import cli; print(cli.main(['fit', 'quickstart', '--data.source', 'folder:gone']), 'torch' in sys.modules)"
    done = python(code, cwd=tmp_path)
    assert done.stdout == "65 False\n" and done.stderr.startswith("folder:gone: got no such folder, expected train/ with one folder per class")
    assert not list(tmp_path.iterdir())  # no run folder is begun


def test_exit_codes(capsys, monkeypatch):
    from layerzoo.errors import bad_value

    def code(error):
        def fail(*a):
            raise error
        monkeypatch.setattr(cli, "read_recipe", fail)
        return run(capsys, "fit", "quickstart")

    from layerzoo.errors import DataRefused
    from layerzoo.strict_yaml import RecipeRefused

    assert code(bad_value("a", got="b", expected="c", do="D."))[::2] == (2, "a: got b, expected c. D.\n")
    assert code(bad_value("a", got="b", expected="c", do="D.", kind=DataRefused))[0] == 65
    assert code(RecipeRefused("f", "k", got="b", expected="c", do="D."))[::2] == (77, "f: k\n  got: b\n  expected: c\n  do: D.\n")
    full, _, message = code(OSError(28, "No space left on device", "x"))
    assert full == 74 and message.startswith("storage: got [Errno 28] No space left on device: 'x', expected a place to write. Free space")
    assert code(KeyboardInterrupt())[0] == 130
    assert code(FloatingPointError("training loss at step 3 is nan."))[::2] == (1, "training loss at step 3 is nan.\n")
    for fault in (RuntimeError("x"), ValueError("x"), FileNotFoundError(2, "x")):
        with pytest.raises(type(fault)):
            code(fault)


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    cli._say("x")
    monkeypatch.setenv("LOCAL_RANK", "0")
    cli._say("y")
    assert capsys.readouterr().out == "y\n"


def test_a_checkpoint_is_needed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "check_build", lambda *a: None)
    code, _, err = run(capsys, "test", "quickstart")
    assert (code, err) == (2, (
        "--checkpoint: got none, expected a finished run of quickstart with these options below runs/. "
        "Run `layerzoo fit quickstart`, or pass --checkpoint NAME.\n"))
    refused = "--checkpoint: got none, expected a name, folder or address. `layerzoo list checkpoints` lists those to pull.\n"
    assert run(capsys, "predict", "a.png") == (2, "", refused)


def test_the_newest_run_of_a_recipe_and_seed_is_taken(tmp_path):
    from argparse import Namespace

    from layerzoo.recipe import read_recipe, sha256

    recipe = read_recipe("quickstart", ["seed=1", f"runs={tmp_path}"])
    for age, run_name in enumerate(("s10", "s1-2", "s1", "s1-1")):
        folder = tmp_path / "quickstart" / f"{sha256(recipe)[:8]}-{run_name}" / "checkpoint"
        folder.mkdir(parents=True)
        os.utime(folder, (0, -age))
    assert cli._checkpoint(Namespace(checkpoint=None), recipe, "quickstart").endswith("-s1-2/checkpoint")


def test_published_checkpoints(capsys, tmp_path, monkeypatch):
    """Listed with their numbers, shown, and used by name on images."""
    import layerzoo as lz
    from layerzoo.checkpoint import save_checkpoint
    from layerzoo.hub import publish

    model = lz.create_model("hybrid_nano", num_classes=3, img_size=32)
    folder = save_checkpoint(
        tmp_path / "run", model, classes=["ant", "bee", "fly"], mean=[0.5] * 3, std=[0.25] * 3, metrics={"test/top1": 0.5}, recipe=None)
    publish(folder, "tiny", tmp_path / "published")
    monkeypatch.setenv("LAYERZOO_CHECKPOINTS", str(tmp_path / "published"))
    (row,) = json.loads(run(capsys, "list", "checkpoints", "--json")[1])
    assert (row["name"], row["top-1"]) == ("tiny", 0.5) and len(row["sha256"]) == 16
    assert "manifest_sha256" in run(capsys, "show", "tiny")[1]
    image = Image.new("L", (50, 40), 128)
    image.save(tmp_path / "grey.png")
    code, out, _ = run(capsys, "predict", str(tmp_path / "grey.png"), str(tmp_path / "grey.png"), "--checkpoint", "tiny")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and len(lines) == 2 and lines[0] == lines[1]
    x = (torch.full((1, 3, 32, 32), 128 / 255) - 0.5) / 0.25
    expected = model.eval()(x).softmax(1)[0].sort(descending=True)
    assert lines[0][1::2] == [["ant", "bee", "fly"][k] for k in expected.indices]
    assert [float(v) for v in lines[0][2::2]] == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_a_model_trained_in_grey_sees_grey(tmp_path):
    import layerzoo as lz

    model = lz.create_model("hybrid_nano", num_classes=3, img_size=8).eval()
    Image.merge("RGB", [Image.effect_noise((8, 8), 90) for _ in range(3)]).save(tmp_path / "colour.png")
    Image.open(tmp_path / "colour.png").convert("L").save(tmp_path / "luma.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("colour", "luma")]
    for source, same in (("folder:x", False), ("grey:folder:x", True)):
        model.manifest = {"mean": [0.5] * 3, "std": [0.25] * 3, "recipe": {"data": {"source": source}}}
        colour, luma = cli.classify_images(model, paths)
        assert torch.equal(colour, luma) is same


def test_the_whole_way(capsys, tmp_path, monkeypatch):
    """fit, test, validate and predict as typed: quiet, one line per epoch, the next command printed, the same metrics again."""
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    short = ["quickstart", "--trainer.max_epochs", "2", "--data.train_fraction", "0.3"]
    command = [sys.executable, "-m", "layerzoo", "fit", *short]
    fitted = subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert (fitted.returncode, fitted.stderr) == (0, "")
    assert len(re.findall(r"^epoch \d/2  ", fitted.stdout, re.MULTILINE)) == 2
    lines = dict(re.findall(r"^(test/top1|run|next) +(.+)$", fitted.stdout, re.MULTILINE))
    checkpoint = ["--checkpoint", f"{lines['run']}/checkpoint"]
    assert lines["next"] == f"layerzoo predict IMAGE {' '.join(checkpoint)}"

    tested = run(capsys, "test", *short)[1]
    assert re.search(r"^test/top1 +(.+)$", tested, re.MULTILINE)[1] == lines["test/top1"]
    assert re.search(r"^val/top1 +0\.\d{4}$", run(capsys, "validate", *short)[1], re.MULTILINE)
    predicted = re.findall(r"^(\d+)\t(\d)\t0\.\d{4}$", run(capsys, "predict", *short)[1], re.MULTILINE)
    assert [int(i) for i, _ in predicted] == list(range(355))
    Image.fromarray((load_digits().images[0] * 15.9).astype("uint8")).save("zero.png")
    path, *top = run(capsys, "predict", "zero.png", *checkpoint)[1].strip().split("\t")
    assert path == "zero.png" and sorted(top[1::2], reverse=True) == top[1::2] and len(top) == 6
    Path("broken.png").write_bytes(b"no image")
    code, _, refused = run(capsys, "predict", "broken.png", *checkpoint)
    assert code == 65 and refused.startswith("image broken.png: got ")
    code, _, refused = run(capsys, "fit", *short, "--resume", lines["run"], "--task.optimizer.lr", "1")
    assert code == 2 and "task.optimizer.lr is 1.0, in the run 0.002" in refused
