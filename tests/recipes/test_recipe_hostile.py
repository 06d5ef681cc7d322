"""Recipes that ask for code: refused with exit code 77, or as plain errors, with nothing imported, run, opened or connected."""

import subprocess
import sys
import textwrap

import pytest

from layerzoo.recipe_check import ALLOWED_IMPORTS, is_allowed

HEAD = "meta: {summary: s}\nmodel: {name: vit_tiny}\ndata: {source: digits}\n"
CLASS_PATHS = [
    "os.system", "os.path.join", "subprocess.Popen", "builtins.exec", "builtins.eval", "sys.exit", "shutil.rmtree", "ctypes.CDLL",
    "pickle.loads", "importlib.import_module", "trap.Trap", "trap", "Trap", ".trap.Trap", "trap:Trap", "trap.sub.Trap",
    "torch.load", "torch.hub.load", "torch.jit.Load", "torch.utils.cpp_extension.CppExtension", "torchvision.Trap",
    "layerzoo.cli.main", "layerzoo.registry.importlib.Trap.Trap", "layerzoo_evil.Trap", "timmy.Trap", "timm", "torch.nn",
    "torch.nn.modules._functions.os.system", "torch.nn.__builtins__.Eval", "pytorch_lightning.Trap;import os",
    "pytorch_lightning.callbacks.Timer\n", "lightning.pytorch.callbacks.Timer()", "../trap.Trap", "/tmp/trap.Trap",
    "file:trap.Trap"]
ELSEWHERE = {
    "in init_args": "trainer: {callbacks: [{class_path: pytorch_lightning.callbacks.Timer, init_args: {x: {class_path: trap.Trap}}}]}",
    "in a list": "trainer: {callbacks: [{class_path: pytorch_lightning.callbacks.Timer}, {class_path: trap.Trap}]}",
    "in trainer options": "trainer: {options: {profiler: {class_path: trap.Trap}}}",
    "in optimiser options": "task: {optimizer: {options: {betas: {class_path: trap.Trap}}}}",
    "in a section": "task: {class_path: trap.Trap}",
    "at the top": "class_path: trap.Trap",
    "as a list": "trainer: {callbacks: [{class_path: [trap.Trap]}]}",
    "as a mapping": "trainer: {callbacks: [{class_path: {class_path: trap.Trap}}]}",
    "as a number": "trainer: {callbacks: [{class_path: 1}]}",
    "python tag": "seed: !!python/object/apply:trap.Trap []",
    "python name": "seed: !!python/name:trap.Trap",
    "python module": "seed: !!python/module:trap",
    "own tag": "seed: !Trap {}",
    "runs outside": "runs: ../../elsewhere",
    "runs absolute": "runs: /etc/cron.d",
}

WATCH = textwrap.dedent("""
    import sys
    sys.path.insert(0, {here!r})
    from layerzoo import cli
    cli.read_recipe("quickstart", ["trainer.callbacks=[]", "trainer.options.limit_train_batches=1"])  # what reading loads is loaded
    watched = ("import", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.remove", "open")
    seen = []
    def hook(event, args):
        if event in watched and not (event in ("import", "open") and str(args[0]).startswith({here!r}) and str(args[0]).endswith(".yaml")):
            seen.append((event, str(args[0])[:80]))
    before = set(sys.modules)
    codes = {{}}
    sys.addaudithook(hook)
    for path in {paths!r}:
        seen.clear()
        code = cli.main(["fit", path])
        bad = [s for s in seen if not (s[0] == "open" and s[1].endswith(".yaml"))]
        print(path, code, bad, sorted(set(sys.modules) - before))
""")


def test_hostile_recipes(tmp_path):
    """Each of the corpus ends with 77; the audit hook sees no import, no code compiled, no process, no socket, no file but the recipe."""
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\nclass Trap: pass\n")
    recipes = [f"trainer: {{callbacks: [{{class_path: {c!r}}}]}}".replace("'", '"') for c in CLASS_PATHS] + list(ELSEWHERE.values())
    paths = []
    for i, text in enumerate(recipes):
        paths.append(str(tmp_path / f"hostile{i}.yaml"))
        (tmp_path / f"hostile{i}.yaml").write_text(HEAD + text + "\n")
    code = WATCH.format(here=str(tmp_path), paths=paths)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(recipes) >= 40 and len(lines) == len(recipes), done.stderr
    for line, path, text in zip(lines, paths, recipes):
        assert line == f"{path} 77 [] []", (text, line, done.stderr[-500:])
    assert not (tmp_path / "sprung").exists()


def test_the_refusal_names_the_line_and_the_packages(tmp_path):
    from layerzoo.recipe import read_recipe
    from layerzoo.strict_yaml import RecipeRefused

    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "trainer:\n  callbacks:\n  - class_path: os.system\n")
    with pytest.raises(RecipeRefused) as caught:
        read_recipe(str(path))
    assert str(caught.value) == (
        f"{path}:6: trainer.callbacks.0.class_path\n  got: 'os.system'\n"
        "  expected: a class of layerzoo, torch.optim, torch.nn, pytorch_lightning, lightning, torchmetrics, timm\n"
        "  do: A recipe is data: import classes of your own in a script that calls layerzoo.")
    path.write_text(HEAD + "runs: ../x\n")
    with pytest.raises(RecipeRefused) as caught:
        read_recipe(str(path))
    assert str(caught.value) == (
        f"{path}:4: runs\n  got: '../x'\n  expected: a folder below the current one\n"
        "  do: Name a folder elsewhere on the command line: --runs PATH.")
    assert read_recipe(str(path), [f"runs={tmp_path}"]).runs == str(tmp_path)


def test_classes_of_the_allowed_packages_pass():
    for package in ALLOWED_IMPORTS:
        assert is_allowed(f"{package}.Timer") and is_allowed(f"{package}.callbacks.Timer")
        assert not is_allowed(package) and not is_allowed(f"{package}evil.Timer")
