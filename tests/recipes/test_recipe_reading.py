"""What a recipe may say, who wins, and how each refusal reads."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import layerzoo
from layerzoo.models.presets import PRESETS, list_models
from layerzoo.recipe import NOT_IN_HASH, RecipeError, find_recipe, list_recipes, read_recipe, resolved, save, sha256
from layerzoo.strict_yaml import RecipeRefused

SMALL = "meta:\n  summary: s\nmodel:\n  name: vit_tiny\ndata:\n  source: digits\n"


@pytest.fixture
def recipe(tmp_path):
    """Write text as a recipe and give its path."""

    def make(text: str | bytes) -> str:
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return make


def refusal(path: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    assert len(str(caught.value).splitlines()) <= 6
    assert caught.value.exit_code == (77 if isinstance(caught.value, RecipeRefused) else 2)
    return str(caught.value).replace(f"{path}:", "FILE:") if path else str(caught.value)


YAML = {
    "empty": ("", "FILE:1: recipe\n  got: an empty file\n  expected: a mapping with meta, model and data"),
    "comments only": ("# nothing\n", "FILE:1: recipe\n  got: an empty file"),
    "a list": ("- a\n", "FILE:1: recipe\n  got: ['a'] (list) at the top"),
    "byte-order mark": (b"\xef\xbb\xbf" + SMALL.encode(), "FILE:1: encoding\n  got: a byte-order mark\n  expected: UTF-8 without one"),
    "UTF-16": (SMALL.encode("utf-16"), "FILE:1: encoding\n  got: a byte-order mark"),
    "Latin-1": (b"# a\n# \xe9\n", "FILE:2: encoding\n  got: the byte 0xe9\n  expected: UTF-8"),
    "control character": (SMALL + "seed: \x07\n", "FILE:7: syntax\n  got: the character U+0007\n  expected: printable text"),
    "tab": ("meta:\n\tsummary: s\n", "FILE:2: syntax\n  got: a tab\n  expected: spaces\n  do: Indent with spaces."),
    "unclosed bracket": (SMALL + "trainer: {max_epochs: 1\n", "FILE:8: syntax\n  got: expected ',' or '}'"),
    "two documents": (SMALL + "---\n" + SMALL, "FILE:7: syntax\n  got: but found another document"),
    "alias": (SMALL + "task: &a {}\ntrainer: *a\n", "FILE:7: syntax\n  got: the anchor or alias a\n  expected: values written out"),
    "alias bomb": ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "FILE:1: syntax\n  got: the anchor or alias a"),
    "deep nesting": ("a: " + "[" * 30000, "FILE:1: syntax\n  got: more than 20 levels"),
    "huge": ("# " + "x" * 70000, "FILE: recipe\n  got: 70002 bytes\n  expected: a file of at most 65536 bytes"),
    "tag": (SMALL + "seed: !!int 3\n",
        "FILE:7: syntax\n  got: the tag tag:yaml.org,2002:int\n  expected: plain text, numbers, lists and mappings"),
    "python tag": (SMALL + "seed: !!python/object/apply:os.system [id]\n",
        "FILE:7: syntax\n  got: the tag tag:yaml.org,2002:python/object/apply:os.system\n  expected: data, never code"),
    "duplicate key": (SMALL + "seed: 1\nseed: 2\n",
        "FILE:8: seed\n  got: the key again, first on line 7\n  expected: each key once\n  do: Delete one of the two."),
    "duplicate section": (SMALL + "data:\n  source: digits\n", "FILE:7: data\n  got: the key again, first on line 5"),
    "number as key": (
        SMALL + "1: a\n", "FILE:7: recipe\n  got: 1 (int) as a key\n  expected: a name\n  do: Write the name of an option."),
    "switch as key": (SMALL + "no: a\n", "FILE:7: key\n  got: no without quotes"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_is_refused(recipe, case):
    text, message = YAML[case]
    assert message in refusal(recipe(text))


@pytest.mark.parametrize("text", [
    "no", "Yes", "on", "OFF", "y", "010", "0x1F", "0b11", "1_000", "12:30:00", "2026-11-23", ".inf", "-.nan", "1e400", "9" * 30])
@pytest.mark.parametrize("key", ["seed", "meta.summary", "data.cache"])
def test_what_yaml_versions_read_differently_is_refused(recipe, text, key):
    lines = SMALL.splitlines()
    if key == "seed":
        lines.append(f"seed: {text}")
    elif key == "meta.summary":
        lines[1] = f"  summary: {text}"
    else:
        lines.append(f"  cache: {text}")
    got = refusal(recipe("\n".join(lines)))
    line = 2 if key == "meta.summary" else 7
    assert got == (
        f"FILE:{line}: {key}\n  got: {text} without quotes\n  expected: a value that every YAML version reads alike\n"
        f'  do: Write true or false for a switch, a finite decimal number for a number, "{text}" for text.')


@pytest.mark.parametrize(
    "text, value", [("1e-3", 1e-3), ("1E-3", 1e-3), (".5", 0.5), ("5.", 5.0), ("+0.1", 0.1), ("2", 2.0), ("1.5e+0", 1.5)])
def test_numbers_as_people_write_them(recipe, text, value):
    assert read_recipe(recipe(SMALL + f"task:\n  optimizer:\n    lr: {text}\n")).task.optimizer.lr == value
    assert read_recipe(recipe(SMALL), [f"task.optimizer.lr={text}"]).task.optimizer.lr == value


def test_quoted_text_stays_text(recipe):
    text = SMALL.replace("summary: s", 'summary: "no"').replace("  name: v", "  stem: null\n  name: v") + 'runs: "010"\n'
    read = read_recipe(recipe(text))
    assert (read.meta.summary, read.runs, read.model.stem) == ("no", "010", None)


WRONG = {
    "unknown section": (["optimiser.lr=1"],
        "command line: optimiser\n  got: the unknown key 'optimiser'\n  expected: a key of a recipe, such as"),
    "unknown key": (["data.bach_size=3"],
        "command line: data.bach_size\n  got: the unknown key 'bach_size'\n  expected: a key of data, such as batch_size, eval_batch_size"),
    "key of another section": (["task.lr=1"],
        "task.lr\n  got: the unknown key 'lr'\n  expected: a key of task, such as task.optimizer.lr\n  do: Write task.optimizer.lr."),
    "text for a number": (["data.batch_size=many"],
        "data.batch_size\n  got: 'many' (text)\n  expected: a whole number (samples per optimiser step over all devices)"),
    "quoted number": (["data.batch_size='64'"],
        "got: '64' (text)\n  expected: a whole number (samples per optimiser step over all devices)\n  do: Numbers, true"),
    "fraction for a count": (["data.batch_size=1.5"], "got: 1.5 (a number)\n  expected: a whole number"),
    "switch for a number": (["seed=true"],
        "seed\n  got: True (true or false)\n  expected: a whole number (of initialisation, order and augmentation)"),
    "number for a switch": (["data.cache=1"], "data.cache\n  got: 1 (a whole number)\n  expected: true or false"),
    "text for a switch": (["data.cache='yes'"], "data.cache\n  got: 'yes' (text)\n  expected: true or false"),
    "null for a number": (["data.img_size=null"], "data.img_size\n  got: null\n  expected: a whole number"),
    "quoted null": (["model.drop_path='null'"], "model.drop_path\n  got: 'null' (text)\n  expected: a number or null"),
    "text for a mapping": (["model.options='{depth: 2}'"], "model.options\n  got: '{depth: 2}' (text)\n  expected: a mapping"),
    "choice": (["data.pipeline=memry"],
        "data.pipeline\n  got: 'memry' (text)\n  expected: one of auto, memory, streaming (\"memory\" (decoded once"),
    "nearest choice": (["trainer.precision=bf16-mix"], "do: Write bf16-mixed."),
    "section that is null": (["task=null"], "task\n  got: null\n  expected: a section with keys such as label_smoothing, ema_decay, tta"),
    "section that is text": (["task.optimizer=adamw"],
        "task.optimizer\n  got: 'adamw' (text)\n  expected: a section with keys such as name, lr, weight_decay"),
    "list for a mapping": (["trainer.callbacks=[a]"], "trainer.callbacks\n  got: ['a'] (a list)\n  expected: a list of mappings"),
    "below a number": (["data.batch_size.x=1"], "data.batch_size\n  got: {'x': 1} (a mapping)\n  expected: a whole number"),
    "range": (["data.batch_size=0"], "data.batch_size\n  got: 0\n  expected: a number >= 1\n  do: Choose a number in that range."),
    "range of a share": (["task.label_smoothing=1.0"], "expected: a number >= 0 and < 1"),
    "closed range": (["task.schedule.end=1.5"], "expected: a number >= 0 and <= 1"),
    "positive": (["task.optimizer.lr=0"], "expected: a number > 0"),
    "half-open range": (["data.train_fraction=0"], "expected: a number > 0 and <= 1"),
    "negative": (["seed=-1"], "expected: a number >= 0\n"),
    "fsdp compiled": (["trainer.strategy=fsdp", "task.compile=true"],
        "trainer.strategy\n  got: fsdp with task.compile\n  expected: ddp, or neither of these with fsdp\n  do: Use bf16-mixed, and do not compile."),
    "fsdp in float16": (["trainer.strategy=fsdp", "trainer.precision=16-mixed"],
        "trainer.strategy\n  got: fsdp with precision 16-mixed\n  expected: ddp, or neither of these with fsdp"),
    "fsdp and whole tensors": (["trainer.strategy=fsdp", "task.optimizer.name=adafactor"],
        "task.optimizer.name\n  got: adafactor with trainer.strategy fsdp\n  expected: one of adabelief, adadelta, "),
    "warm-up": (["task.schedule.warmup_epochs=11"],
        "task.schedule.warmup_epochs\n  got: 11.0\n  expected: at most trainer.max_epochs = 10"),
    "model": (["model.name=vit_tinny"], "model.name\n  got: 'vit_tinny'\n  expected: a known model such as vit_tiny, maxvit_tiny, mvitv2_tiny"),
    "layer": (["model.layer=mhsaa"], "model.layer\n  got: 'mhsaa'\n  expected: a known layer such as mhsa,"),
    "layer in a dict": (["model.layer={name: mhsaa}"], "model.layer.name\n  got: 'mhsaa'"),
    "layer in a list": (["model.layer=[mhsa, mhsaa]"], "model.layer.1\n  got: 'mhsaa'"),
    "misspelt name of a layer": (
        ["model.layer={nme: mhsa}"],
        "model.layer.nme\n  got: the unknown key 'nme'\n  expected: the key that names the layer, such as name\n"),
    "whole block in a ViT": (["model.layer=basic"], "model.layer\n  got: 'basic'\n  expected: a known layer"),
    "layer without a name": (["model.layer={num_heads: 3}"],
        "model.layer\n  got: a mapping without name\n  expected: {name: a layer, option: value}\n  do: Add name: to model.layer."),
    "layer option": (["model.layer={name: mhsa, num_head: 3}"],
        "model.layer.num_head\n  got: the unknown key 'num_head'\n  expected: an option of mhsa, such as num_heads"),
    "layer option's type": (["model.layer={name: mhsa, num_heads: many}"],
        "model.layer.num_heads\n  got: 'many' (text)\n  expected: a whole number or null"),
    "a layer without options": (["model.layer={name: identity, k: 1}"],
        "got: the unknown key 'k'\n  expected: an option of identity, of which there is none\n  do: Delete it."),
    "ffn": (["model.ffn=mpl"], "model.ffn\n  got: 'mpl'\n  expected: a known ffn such as mlp"),
    "position": (["model.position=learnd"], "model.position\n  got: 'learnd'\n  expected: a known position such as learned"),
    "stem": (["model.stem={name: patchify, patch: 4}"],
        "model.stem.patch\n  got: the unknown key 'patch'\n  expected: an option of patchify, such as patch_size"),
    "downsample": (["model.downsample=patch_merg"],
        "model.downsample\n  got: 'patch_merg'\n  expected: a known downsample such as patch_merge"),
    "model option": (["model.options.depths=[1]"],
        "model.options.depths\n  got: the unknown key 'depths'\n  expected: an option of isotropic models, such as depth"),
    "model option that has a key": (["model.options.layer=mhsa"], "model.options.layer\n  got: the unknown key 'layer'"),
    "block option": (["model.options.block.num_head=1"],
        "model.options.block.num_head\n  got: the unknown key 'num_head'\n  expected: an option of blocks, such as num_heads"),
    "width of the last map": (["model.options.head.num_features=wide"], "num_features\n  got: 'wide' (text)\n  expected: a whole number"),
    "head option": (["model.options.head.pool=3"],
        "model.options.head.pool\n  got: 3 (a whole number)\n  expected: text\n  do: Put it in quotes."),
    "source": (["data.source=cifar10"],
        "data.source\n  got: 'cifar10'\n  expected: digits, folder:PATH, wds:PATH, or a name after torch/, hfds/, hfids/, tfds/, wds/"),
    "source without a name": (["data.source=torch/"], "data.source\n  got: 'torch/'"),
    "trainer option": (["trainer.options.limit_train_batch=1"],
        "expected: a free argument of pytorch_lightning.Trainer, such as limit_train_batches"),
    "trainer option that is ours": (["trainer.options.max_epochs=1"], "trainer.options.max_epochs\n  got: the unknown key 'max_epochs'"),
    "callback without a class": (["trainer.callbacks=[{init_args: {}}]"],
        "trainer.callbacks.0\n  got: an entry without class_path\n  expected: {class_path: ..., init_args: {...}}"),
    "callback key": (["trainer.callbacks=[{class_path: timm.A, args: {}}]"],
        "trainer.callbacks.0.args\n  got: the unknown key 'args'\n  expected: a key of a callback, such as init_args"),
    "no value": (["seed"], "command line: seed\n  got: seed\n  expected: key=value"),
    "remedy for no value": (["seed"], "do: Write for example --model.layer nystrom."),
    "remedy for a model": (["model.name=resnet81"], "do: Write resnet18. `layerzoo list models` lists all."),
    "no key": (["data..x=1"], "command line: data..x\n  got: data..x=1\n  expected: key=value"),
    "bad brackets": (["model.layer={name: mhsa"], "command line:1: syntax\n  got: expected ',' or '}'"),
    "option of a list": (["trainer.callbacks=[]", "trainer.callbacks.x=1"],
        "command line: trainer.callbacks.x\n  got: trainer.callbacks is []\n  expected: a section that can hold x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_are_refused(recipe, case):
    overrides, message = WRONG[case]
    assert message in refusal(recipe(SMALL), *overrides)


@pytest.mark.parametrize("drop, message", [
    ("  name: vit_tiny\n", "model\n  got: null\n  expected: a section with keys such as name, layer, ffn"),
    ("model:\n  name: vit_tiny\n", "model\n  got: nothing\n  expected: a section (preset and changes)\n  do: Add model: to recipe."),
    ("  source: digits\n", "data\n  got: null"),
    ("  summary: s\n", "meta\n  got: null")])
def test_what_is_missing_is_named(recipe, drop, message):
    assert message in refusal(recipe(SMALL.replace(drop, "")))


def test_a_missing_key_is_named_with_its_section(recipe):
    assert refusal(recipe(SMALL.replace("name: vit_tiny", "drop_path: 0.1"))) == (
        "FILE:3: model.name\n  got: nothing\n  expected: text (preset, one of `layerzoo.list_models()`)\n  do: Add name: to model.")


def test_defaults_then_file_then_command_line(recipe):
    path = recipe(SMALL + "seed: 3\n")
    assert read_recipe(path).trainer.max_epochs == 10
    assert read_recipe(path).seed == 3
    assert read_recipe(path, ["seed=4", "trainer.max_epochs=2", "seed=5"]).seed == 5


def test_overrides(recipe):
    path = recipe(SMALL.replace("  name: vit_tiny\n", "  name: vit_tiny\n  layer: {name: mhsa, num_heads: 3}\n"))
    read = lambda *o: read_recipe(path, o)
    assert read("model.layer=pooling").model.layer == "pooling"  # a new name drops the old one's options
    assert read("model.layer=mhsa", "model.layer.num_heads=4").model.layer == {"name": "mhsa", "num_heads": 4}
    assert read("model.layer.qkv_bias=false").model.layer == {"name": "mhsa", "num_heads": 3, "qkv_bias": False}
    assert read("model.layer=null").model.layer is None
    assert read("meta.command=a=b c").meta.command == "a=b c"
    assert read("meta.paper=2103.14030", "meta.summary=no").meta.paper == "2103.14030"  # text is taken as typed
    assert read("trainer.devices=4").trainer.devices == 4
    assert read("trainer.devices=auto").trainer.devices == "auto"
    assert read("model.options={depth: 2}").model.options == {"depth": 2}
    assert read("model.options.depth=2", "model.options.block.num_heads=4").model.options == {"depth": 2, "block": {"num_heads": 4}}


def test_lines_of_the_file_are_named(recipe):
    optimizer = "task:\n  optimizer:\n    lr: 1e-3\n    momentun: 0.9\n"
    assert refusal(recipe(SMALL + optimizer)).startswith("FILE:10: task.optimizer.momentun\n")
    assert refusal(recipe(SMALL + "model2: {}\n")).startswith("FILE:7: model2\n")
    layers = SMALL.replace("vit_tiny", "vit_tiny\n  layer:\n  - mhsa\n  - name: conv\n    kernl_size: 3")
    assert refusal(recipe(layers)).startswith("FILE:8: model.layer.1.kernl_size\n")


def test_resolved_saves_and_reads_back(recipe, tmp_path):
    odd = ["no", "1e-3", "010", "null", "a: b", "# c", "12:30:00", " x ", "", "é", "=", "two\nlines", "y", "0o17", "'q\""]
    for text in odd:
        read = read_recipe(recipe(SMALL), [f"meta.summary={text}", "model.layer={name: mhsa, num_heads: 3}", "task.optimizer.lr=1e-05"])
        save(read, tmp_path / "saved.yaml")
        assert read_recipe(str(tmp_path / "saved.yaml")) == read
        assert json.loads(json.dumps(resolved(read))) == resolved(read)


def test_hash_names_the_result_not_the_machine(recipe):
    path = recipe(SMALL)
    base = sha256(read_recipe(path))
    same = [
        "meta.accuracy=0.9", "seed=1", "runs=x", "trainer.devices=4", "trainer.strategy=ddp", "data.num_workers=7",
        "logging.wandb=disabled"]
    assert {sha256(read_recipe(path, [o])) for o in same} == {base}
    assert all(o.split("=")[0].startswith(NOT_IN_HASH) for o in same)
    other = ["trainer.max_epochs=11", "data.batch_size=64", "model.layer=pooling", "task.optimizer.lr=2e-3", "trainer.precision=bf16-mixed"]
    assert len({base, *(sha256(read_recipe(path, [o])) for o in other)}) == 6
    assert base == sha256(read_recipe(recipe("# a comment\n" + SMALL + "seed: 0\n")))


def test_missing_recipes_name_the_nearest(tmp_path):
    for name in ("quickstrat", "recipes/quickstrat.yaml", str(tmp_path), "", "\0.yaml"):
        assert "recipe\n  got: no such recipe\n  expected: the path of a .yaml file, or a name such as" in refusal(name)
    assert "such as quickstart," in refusal("quickstrat")
    assert "such as cifar10/resnet18, cifar100/resnet18," in refusal("cifar10/resnet81")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(recipe):
    path = recipe(SMALL)
    Path(path).chmod(0)
    assert "got: permission denied\n  expected: a file that can be read" in refusal(path)


def test_recipes_that_are_no_plain_files(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "folder.yaml").mkdir(parents=True)
    (tmp_path / "recipes" / "gone.yaml").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    assert refusal("folder") == (
        "recipes/folder.yaml: recipe\n  got: no plain file\n  expected: a file of at most 65536 bytes\n  do: Give the path of one recipe.")
    assert refusal("gone").endswith("got: no such file or directory\n  expected: a file that can be read\n  do: Check its permissions.")


def test_what_is_long_is_cut_short(recipe):
    """And takes no long time: digits and underscores are what a number pattern is slowest at."""
    assert max(map(len, refusal(recipe(SMALL + f"{'k' * 50000}: 1\n")).splitlines())) < 300
    assert read_recipe(recipe(SMALL.replace("summary: s", f"summary: {'1_' * 25000}x"))).meta.summary.endswith("_x")


def test_sources_are_those_that_the_data_room_opens():
    from layerzoo.data.sources import TIMM_PACKAGES
    from layerzoo.recipe_check import SOURCES

    assert SOURCES == tuple(f"{scheme}/" for scheme in TIMM_PACKAGES)


def test_names_come_from_the_current_folder_first(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "mine" / "a.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert {"mine/a", "quickstart"} <= set(list_recipes())
    assert find_recipe("mine/a") == (Path("recipes/mine/a.yaml"), "mine/a")
    assert find_recipe("recipes/mine/a.yaml")[1] == "mine/a"
    (tmp_path / "other.yaml").write_text(SMALL)
    assert find_recipe("other.yaml") == (Path("other.yaml"), "other")


def test_packaged_recipes_are_found_from_any_folder(tmp_path):
    """As installed: the package alone, recipes beside its modules."""
    package = Path(layerzoo.__file__).parent
    shutil.copytree(package, tmp_path / "site" / "layerzoo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "recipes", tmp_path / "site" / "layerzoo" / "_recipes")
    code = (
        "import layerzoo as lz; from layerzoo.recipe import read_recipe\n"
        "print(len(lz.list_recipes()), read_recipe('quickstart').model.name, lz.__file__)")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=False, capture_output=True, text=True)
    package = tmp_path / "site" / "layerzoo"
    assert done.stdout.split() == [str(len(list_recipes())), "hybrid_nano", str(package / "__init__.py")], done.stderr


def test_reading_imports_nothing_heavy():
    code = (
        "import sys; from layerzoo.recipe import read_recipe\n"
        "read_recipe('quickstart', ['model.layer=mhsa', 'model.layer.num_heads=2', 'trainer.options.limit_train_batches=2'])\n"
        "try: read_recipe('quickstart', ['model.layer=mhsaa'])\n"
        "except ValueError: print(sorted({'torch', 'pytorch_lightning', 'timm', 'numpy', 'wandb', 'sklearn', 'PIL'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_options_read_from_source_are_those_of_the_classes():
    import inspect

    from layerzoo.models.classic import WHOLE_BLOCKS
    from layerzoo.models.stem import STEMS
    from layerzoo.recipe_check import _table
    from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS

    given = {"dim", "dim_in", "dim_out", "in_chans"}
    for room in (LAYERS, FFNS, POSITIONS, DOWNSAMPLES):
        for name in room.names():
            assert set(room.options(name)) == set(inspect.signature(room.find(name)).parameters) - given, name
    for module, table, classes in (("classic", "WHOLE_BLOCKS", WHOLE_BLOCKS), ("stem", "STEMS", STEMS)):
        read = _table(module, table)
        assert list(read) == list(classes)
        for name, cls in classes.items():
            assert set(read[name]()) == set(inspect.signature(cls).parameters) - given, name


@pytest.mark.parametrize("name", list_models())
def test_the_sizes_of_a_preset_can_be_changed(recipe, name):
    sizes = {k: v for k, v in PRESETS[name](32).items() if k in ("dim", "depth", "dims", "depths")}
    assert len(sizes) == 2
    read = read_recipe(recipe(SMALL), [f"model.name={name}", *(f"model.options.{k}={v}" for k, v in sizes.items())])
    assert read.model.options == sizes


def test_options_of_a_registered_layer_are_checked(recipe, monkeypatch):
    from layerzoo.registry import LAYERS

    class Mine:
        def __init__(self, dim: int, *, num_heads: int = 2, kind: "str | None" = None, other: Path = Path(), bare=0):
            pass

    monkeypatch.setitem(LAYERS.registered, "mine", Mine)
    assert LAYERS.options("mine") == {"num_heads": "int", "kind": "str | None", "other": "pathlib.Path", "bare": "inspect._empty"}
    assert read_recipe(recipe(SMALL), ["model.layer={name: mine, num_heads: 3, kind: a, other: b, bare: 1}"]).model.layer["num_heads"] == 3
    assert "model.layer.num_heads\n  got: 'a' (text)" in refusal(recipe(SMALL), "model.layer={name: mine, num_heads: a}")


def test_trainer_arguments_read_from_source_are_lightnings():
    import inspect

    import pytorch_lightning as pl

    from layerzoo.recipe_check import _trainer_arguments

    assert _trainer_arguments() == list(inspect.signature(pl.Trainer).parameters)


def test_every_option_is_explained():
    """Errors quote the docstrings of layerzoo.config."""
    import dataclasses

    from layerzoo import config
    from layerzoo.recipe_check import _meaning

    for cls in vars(config).values():
        if dataclasses.is_dataclass(cls):
            assert [f.name for f in dataclasses.fields(cls) if not _meaning(cls, f.name)] == []
            assert re.findall(r"^        (\w+):", cls.__doc__, re.MULTILINE) == [f.name for f in dataclasses.fields(cls)]
