"""The folder as the registry: names, cards and options from source text, and what is refused."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys

import pytest
from torch import nn

import layerzoo as lz
import layerzoo.models
from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS, Room, read_options

ROOMS = [LAYERS, FFNS, POSITIONS, DOWNSAMPLES]


class Mine(lz.TokenLayer):
    card = lz.Card(title="Mine", paper="", year=2026, cost=(1, 1), sizes={})

    def __init__(self, dim: int, *, gain: float = 1.0):
        super().__init__(dim)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(LAYERS, "registered", {})
    return LAYERS.registered


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.folder)
def test_a_card_read_from_source_is_the_class_constant(room):
    assert room.names() == sorted(room.files) and room.names()
    for name in room.names():
        card = room.card(name)
        assert dataclasses.replace(card, name="", family="") == room.find(name).card
        assert card.name == name and card.family == (room.path(name).parent.name if room is LAYERS else "")


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.folder)
def test_options_read_from_source_are_those_of_the_class(room):
    for name in room.names():
        taken = [p for p in inspect.signature(room.find(name)).parameters if p not in ("dim", "dim_in", "dim_out", "in_chans")]
        assert list(room.options(name)) == taken


def test_options_are_inherited():
    assert FFNS.options("mlp") == {"mlp_ratio": "float", "dropout": "float", "act": "str", "norm": "str"}
    assert LAYERS.options("identity") == {}


@pytest.mark.parametrize("room, listing", [
    (LAYERS, "layerzoo.list_layers()"), (FFNS, "layerzoo.registry.FFNS.names()"), (POSITIONS, "layerzoo.registry.POSITIONS.names()"),
    (DOWNSAMPLES, "layerzoo.registry.DOWNSAMPLES.names()")])
def test_unknown_names_are_refused(room, listing):
    for call in (room.path, room.card, room.find, room.options, lambda n: room.create(n, 8)):
        message = f"{room.folder} name: got 'nothing_such', expected a known name such as "
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            call("nothing_such")
        assert str(refused.value).endswith(f". {listing} lists all.")
        assert str(refused.value).count(",") == min(3, len(room.names()))


def test_create_takes_a_name_a_dict_or_a_class():
    assert LAYERS.create("mhsa", 8, num_heads=2).num_heads == 2
    assert LAYERS.create({"name": "mhsa", "num_heads": 2}, 8).num_heads == 2
    assert LAYERS.create({"name": "mhsa", "num_heads": 2}, 8, num_heads=4).num_heads == 4
    assert type(LAYERS.create(Mine, 8)) is Mine


def test_defaults_apply_where_they_are_taken_and_not_given():
    assert LAYERS.create("mhsa", 8, defaults={"num_heads": 2, "window_size": 3}).num_heads == 2
    assert LAYERS.create({"name": "mhsa", "num_heads": 4}, 8, defaults={"num_heads": 2}).num_heads == 4


def test_the_given_dict_is_left_alone():
    spec = {"name": "mhsa", "num_heads": 2}
    LAYERS.create(spec, 8)
    assert spec == {"name": "mhsa", "num_heads": 2}


def test_a_dict_without_a_name_is_refused():
    message = "layers spec: got {'num_heads': 2}, expected a dict with the key 'name'. Add name: <one of the listed>."
    with pytest.raises(ValueError, match=re.escape(message)):
        LAYERS.create({"num_heads": 2}, 8)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=re.escape("option of MHSA: got 'heads', expected a known name such as num_heads, ")) as refused:
        LAYERS.create("mhsa", 8, heads=2)
    assert str(refused.value).endswith(". help(layerzoo.layers) and layerzoo show mhsa lists all.")


def test_registered_classes_are_found_and_created(registered):
    LAYERS.register(Mine, "mine")
    assert "mine" in LAYERS.names() and LAYERS.find("mine") is Mine
    assert (LAYERS.card("mine").name, LAYERS.card("mine").family) == ("mine", "registered")
    assert LAYERS.options("mine") == {"gain": "float"}
    assert type(LAYERS.create("mine", 8, gain=2.0)) is Mine


def test_names_are_taken_once(registered):
    LAYERS.register(Mine, "mine")
    assert LAYERS.register(Mine, "mine") is Mine
    for name in ("mine", "mhsa"):
        with pytest.raises(ValueError, match=re.escape(f"layers name: got {name!r}, expected a name not yet taken. Choose another name.")):
            LAYERS.register(type("Other", (Mine,), {}), name)


def test_a_file_without_a_card_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bare.py"
    path.write_text("class Bare:\n    pass\n")
    room = Room("layers", "listing")
    monkeypatch.setitem(room.files, "bare", path)
    message = f"card of bare: got none, expected card = Card(...) with literal values in the class body. Add it to {path}."
    for call in (room.card, room.options):
        with pytest.raises(ValueError, match=re.escape(message)):
            call("bare")


def test_options_of_a_class_beside_the_one_with_a_card(tmp_path):
    path = tmp_path / "two.py"
    path.write_text("class First:\n    def __init__(self, dim: int, *, a: int = 1): ...\n\nclass Second(First):\n    card = Card()\n")
    assert read_options(path) == read_options(path, "First") == {"a": "int"}


def test_every_option_is_annotated():
    for room in ROOMS:
        for name in room.names():
            tree = ast.parse(room.path(name).read_text(encoding="utf-8"))
            inits = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
            assert all(a.annotation for f in inits for a in (*f.args.args[1:], *f.args.kwonlyargs)), name


def test_names_outside_the_package_are_told():
    with pytest.raises(AttributeError, match=re.escape("module 'layerzoo' has no attribute 'create_net'; dir(layerzoo) lists all")):
        lz.create_net  # noqa: B018
    with pytest.raises(AttributeError, match=re.escape("module 'layerzoo.models' has no attribute 'create_net'")):
        lz.models.create_net  # noqa: B018
    assert {"create_layer", "list_layers", "check_layer", "__version__"} <= set(dir(lz))


def test_listing_loads_no_torch():
    code = "import sys, layerzoo as lz; [lz.layer_card(n) for n in lz.list_layers()]; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_parts_are_modules():
    assert all(issubclass(room.find(n), nn.Module) for room in ROOMS for n in room.names())
