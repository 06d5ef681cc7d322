"""Every Python block of the README and the docs runs, page by page; commands in them are the ones CI calls."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = ("tutorial",)


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in SLOW), id=p.stem) for p in PAGES])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    from layerzoo.registry import LAYERS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LAYERS, "registered", {})
    names = {"__name__": page.stem}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


def test_readme_opens_with_a_picture_and_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    image, commands = re.search(r"!\[.+?\]\((.+?)\)", text), re.search(r"```console\n(.*?)```", text, re.DOTALL).group(1)
    assert (ROOT / image.group(1)).exists()
    assert commands.splitlines() == ["python -m pip install -e . && layerzoo fit recipes/quickstart.yaml", "python -m pip install -e '.[test]' && pytest"]
    assert commands.splitlines()[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_links_between_pages_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists() or target.startswith("reference/") or target in ("efficient-transformers.md", "models.md"), (page.name, target)


@pytest.mark.parametrize("layer", ["linear_attention", "window_attention"])
def test_table_of_costs_before_and_after_a_swap_is_true(layer):
    from layerzoo.report.catalogue import costs

    table = {row[0].strip("` "): [cell.strip() for cell in row[1:]] for row in (
        line.strip("| ").split("|") for line in (ROOT / "docs" / "surgery.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `"))}
    [found] = costs("vit_tiny", [224], swap=layer)
    before, after = zip(*(found[key].replace(" MiB", "").split(" -> ") for key in ("parameters", "MFLOP", "activations")))
    assert list(before) == table["mhsa"][:3] and list(after) == table[layer][:3]
