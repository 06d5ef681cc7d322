"""Pages generated at build time from cards and docstrings."""

import re
import tempfile
from pathlib import Path

from mkdocs.structure.files import File

from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS
from layerzoo.report.pages import efficient_page, faults_page, models_page, other_peers, page, room_table
from layerzoo.report.pattern import draw_pattern

ROOMS = {"layers": LAYERS, "ffn": FFNS, "positions": POSITIONS, "downsample": DOWNSAMPLES}
TWINS = Path(__file__).parent.parent / "tests" / "oracles"


def on_files(files, config):
    """Add one page per module and the table of each room."""
    sections = ["# Layers and what goes between them"]
    for folder, room in ROOMS.items():
        sections.append(f"## {folder}\n\n{room_table(room, folder)}")
        for name in room.names():
            files.append(File.generated(config, f"reference/{folder}/{name}.md", content=page(room, name, TWINS)))
    sections.append(other_peers())
    text = efficient_page()
    files.append(File.generated(config, "efficient-transformers.md", content=text))
    files.append(File.generated(config, "faults.md", content=faults_page()))
    files.append(File.generated(config, "models.md", content=models_page()))
    with tempfile.TemporaryDirectory() as folder:
        for name in re.findall(r"images/patterns/(\w+)\.png", text):
            draw_pattern(name, picture := Path(folder, f"{name}.png"))
            files.append(File.generated(config, f"images/patterns/{name}.png", content=picture.read_bytes()))
    files.append(File.generated(config, "reference/index.md", content="\n\n".join(sections) + "\n"))
    return files
