"""What the package may not contain, since data must never become code: by syntax, and by the least versions of what it builds on."""

import ast
import re
import tomllib

from test_house import ROOT, SOURCES, nodes

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "pty", "imp", "xmlrpc"}
CALLS = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile", "os.system", "os.popen", "tempfile.mktemp",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "torch.load", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "numpy.load", "np.load", "sys.setrecursionlimit",
    "ssl._create_unverified_context"}
SAFE_WITH = {"torch.load": ("weights_only", "True")}  # calls that one argument makes safe
ARGUMENTS = {  # name: the only value it may have
    "shell": "False", "weights_only": "True", "allow_pickle": "False", "trust_remote_code": "False", "verify": "True"}
ATTRIBUTES = {"extractall", "unpack_archive", "load_from_checkpoint", "find_class", "__reduce__", "__subclasses__", "__globals__"}


def dangers(sources=SOURCES):
    """"file:line: what" of all that is banned, in these trees."""
    for path, tree in sources.items():
        for node in ast.walk(tree):
            yield from (f"{path}:{node.lineno}: {what}" for what in _dangers_of(node))


def _dangers_of(node):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [f"{module}." * bool(module) + alias.name for module in (getattr(node, "module", None) or "",) for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in MODULES or name in CALLS)
    elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
        yield node.attr
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        safe = SAFE_WITH.get(called)
        if called in CALLS and not (safe and given.get(safe[0]) == safe[1]):
            yield called
        yield from (f"{name}={value}" for name, value in given.items() if value != ARGUMENTS.get(name, value))


def test_nothing_dangerous():
    """Without exception: what one would need is listed here, with its reason, and taken out of `found`."""
    assert [*dangers()] == []


def test_what_is_banned_is_found():
    banned = (
        "import pickle", "from pickle import loads", "import cloudpickle as p", "import dill", "import marshal", "import shelve", "import joblib",
        "eval('1')", "exec(x)", "compile(x, '', 'exec')", "__import__('os')", "os.system(x)", "from os import system", "os.popen(x)", "yaml.load(f)",
        "yaml.load(f, Loader=L)", "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)", "archive.extractall(p)", "torch.load(p)",
        "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)", "T.load_from_checkpoint(p)", "read(p, weights_only=False)",
        "tempfile.mktemp()", "from tempfile import mktemp", "numpy.load(p)", "load(p, allow_pickle=True)", "shutil.unpack_archive(p)",
        "torch.hub.load_state_dict_from_url(u)", "load(p, trust_remote_code=True)", "requests.get(u, verify=False)")
    missed = [text for text in banned if not [*dangers({"x.py": ast.parse(text)})]]
    fine = ("torch.load(p, weights_only=True)", "re.compile(x)", "model.eval()", "yaml.safe_load(f)", "run(x, shell=False)", "import code_of_mine")
    assert missed == [] and [text for text in fine if [*dangers({"x.py": ast.parse(text)})]] == []


def test_no_assert_and_no_bare_except():
    """Neither vanishes under `python -O`, nor hides a signal."""
    found = [where for where, _ in nodes(ast.Assert)] + [where for where, n in nodes(ast.ExceptHandler) if n.type is None]
    assert found == []


LEAST = {  # package: its first version without what this project's threat model cannot have
    "pytorch-lightning": "2.6.6",  # below: code of a checkpoint from an address is run; 2.6.2 and 2.6.3 were compromised
    "torch": "2.11",  # 2.6 closed code execution with weights_only=True
    "jsonargparse": "4.53",  # below: no allow-list of imports
    "pillow": "12.3",  # below: faults of memory safety in decoders are known
    "safetensors": "0.5"}


def test_least_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = dict(re.fullmatch(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", text).groups() for text in project["dependencies"])
    parts = {name: [*map(int, (stated[name] or "0").split("."))] for name in LEAST}
    assert {name: stated[name] for name, least in LEAST.items() if parts[name] < [*map(int, least.split("."))]} == {}
