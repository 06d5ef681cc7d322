"""The README.md of a checkpoint folder."""

from __future__ import annotations

from layerzoo.strict_yaml import write


def model_card(config: dict, manifest: dict) -> str:
    """Markdown with the front matter of the Hugging Face Hub.

    Args:
        config: of the model.
        manifest: of the checkpoint.
    """
    recipe = manifest["recipe"] or {}
    front = {
        "license": "apache-2.0", "library_name": "layerzoo", "pipeline_tag": "image-classification",
        "tags": ["layerzoo", "image-classification", config["model"]]}
    chans, height, width = config["input_size"]
    trained_by = f"""Trained by this recipe, with all it took from the command line; saved as `recipe.yaml`, `layerzoo fit recipe.yaml` repeats it:

```yaml
{write(recipe).strip()}
```""" if recipe else "The recipe of its training is not stated."
    rows = "\n".join(f"| {key} | {value:.4f} |" for key, value in sorted(manifest["metrics"].items()))
    return f"""---
{write(front).strip()}
---

# {manifest["model"]}

{recipe.get("meta", {}).get("summary", "An image classifier.")}
Input: {chans} channels, {height} x {width} pixels, normalised by mean {manifest["mean"]} and standard deviation {manifest["std"]}
of pixels in [0, 1].

| metric | value |
|---|---|
{rows}

Load it with `layerzoo.load`, which verifies every byte:

```python
import layerzoo as lz

model = lz.load("FOLDER_OR_ADDRESS")
```

{trained_by}

Data: {recipe.get("data", {}).get("source", "not stated")}. Licence of the weights: Apache-2.0; that of the data is its owners'.

Recipe SHA-256: `{manifest["recipe_sha256"] or "not stated"}`. Versions: {", ".join(f"{k} {v}" for k, v in manifest["versions"].items())}.

Classes: {", ".join(manifest["classes"])}
"""
