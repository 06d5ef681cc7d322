"""A home that is missing, no folder, read-only or unknown, no USER, an odd umask, no room for temporary files: pulled and loaded all the same."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from forge import OPTIONS, create
from server import serve

import layerzoo as lz
from layerzoo.checkpoint import save_checkpoint
from layerzoo.paths import cache_folder

CODE = textwrap.dedent("""
    import errno, os, sys, tempfile
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")
    tempfile.mkstemp = tempfile.mkdtemp = tempfile.TemporaryFile = tempfile.NamedTemporaryFile = full
    os.umask(int(sys.argv[2]))
    from layerzoo import hub
    path = hub.pull(sys.argv[1])
    os.environ["LAYERZOO_OFFLINE"] = "1"
    assert hub.pull(path) == path
    print(path)
""")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(save_checkpoint(tmp_path_factory.mktemp("made") / "a", create(), **OPTIONS)) as handler:
        yield handler


def pull(server, work, umask=0o22, **env):
    """Where it went, and what was said, with nothing but these in the environment."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, server.url, str(umask)], cwd=work, env={"PYTHONPATH": str(Path(lz.__file__).parents[1])} | env, check=False,
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()), done.stderr


def test_a_home_that_is_no_folder(server, tmp_path):
    (tmp_path / "home").touch()
    path, said = pull(server, tmp_path, HOME=str(tmp_path / "home"))
    assert path.parents[1] == tmp_path / "runs" / ".cache"
    line = f"{tmp_path}/home/.cache/layerzoo cannot be made; the cache is {tmp_path}/runs/.cache. LAYERZOO_CACHE names another."
    assert said.count(line) == 1, "said once"


@pytest.mark.slow
@pytest.mark.parametrize("home", ["home", "/nowhere", "", "XDG", "LAYERZOO"])
def test_other_homes(server, tmp_path, home):
    """A missing one that can be made, one that cannot, none, and folders that are named: nothing is written anywhere else."""
    env = {"XDG": {"XDG_CACHE_HOME": str(tmp_path / "c")}, "LAYERZOO": {"LAYERZOO_CACHE": str(tmp_path / "c" / "layerzoo")}, "": {}}.get(home)
    env = {"HOME": home if home.startswith("/") else str(tmp_path / home)} if env is None else env
    if home in ("", "/nowhere"):  # a user that is in no list cannot be had here without rights: what is asked is `cache_folder` alone
        code = "import pwd; pwd.getpwuid = lambda uid: {}[uid]\nfrom layerzoo.paths import os, cache_folder\n"
        code += "os.access = lambda path, mode: str(path).startswith(os.getcwd())\nprint(cache_folder())"
        env = env | {"PYTHONPATH": str(Path(lz.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == str(tmp_path / "runs" / ".cache") and "the cache is" in done.stderr
        return
    path, said = pull(server, tmp_path, umask=0o77, **env)
    assert said == "" and path.parents[1] == (tmp_path / "home" / ".cache" / "layerzoo" if home == "home" else tmp_path / "c" / "layerzoo")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home" if home == "home" else "c"]
    assert torch.equal(lz.load(path).head.fc.weight, lz.load(server.folder).head.fc.weight)


def test_a_cache_that_is_there_is_read_though_it_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("LAYERZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *args: False)
    (tmp_path / "layerzoo").mkdir()
    assert cache_folder() == tmp_path / "layerzoo"
    (tmp_path / "layerzoo").rmdir()
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="cannot be made; the cache is"):
        assert cache_folder() == tmp_path / "runs" / ".cache"
