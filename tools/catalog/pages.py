"""A page for each variant, in Markdown, so that its code is highlighted, copied and tested like that of other pages."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Iterable

from repvgg_zoo._atomic import atomic_write
from repvgg_zoo.registry.specs import ModelSpec

from ..model_card import REPOSITORY

TEMPLATE = Path(__file__).with_name("variant.md.in")

PRETRAINED = """\
### Python

```python
import repvgg_zoo

for prediction in repvgg_zoo.predict("$name", "image.jpg", topk=3):
    print(prediction.label, prediction.probability)
```

[`compile`](../guides/inference.md) runs it on kernels for this processor and needs no MegEngine; `create` returns a
MegEngine Module, which `to_deploy` converts to the deploy form:

```python
import numpy as np

with repvgg_zoo.compile("$name") as compiled:
    logits = compiled(np.zeros((1, $channels, $size, $size), np.float32))

network = repvgg_zoo.create("$name", pretrained=True)
deployed = repvgg_zoo.to_deploy(network)
```

### megengine.hub

```python
import megengine.hub

network = megengine.hub.load("$repository:main", "$name", pretrained=True)
```

### Shell

```sh
repvgg-zoo info $name
repvgg-zoo fetch $name
repvgg-zoo predict image.jpg --model $name
repvgg-zoo bench $name
```

### ONNX

```python
import repvgg_zoo

report = repvgg_zoo.export("$name", "$name.onnx")
print(report)
```

```sh
repvgg-zoo export $name $name.onnx
```

The [guide](../guides/deploying.md) has ONNX Runtime, OpenVINO, TensorRT and MegEngine Lite."""

UNVERIFIED = """\
The publisher of the default checkpoint states no digest, so it is refused until you allow it; what is downloaded first
is recorded and required from then on.

```sh
export REPVGG_ZOO_ALLOW_UNVERIFIED=1
```

"""

UNTRAINED = """\
### Python

```python
import repvgg_zoo

network = repvgg_zoo.create("$name")  # random weights: train it first
repvgg_zoo.save_checkpoint("$name.safetensors", network)
```

### megengine.hub

```python
import megengine.hub

network = megengine.hub.load("$repository:main", "$name")
```

### Shell

```sh
repvgg-zoo info $name
repvgg-zoo predict image.jpg --model $name.safetensors
```

### ONNX

```python
import repvgg_zoo

report = repvgg_zoo.export("$name.safetensors", "$name.onnx")
print(report)
```

```sh
repvgg-zoo export $name.safetensors $name.onnx
```

The [guide](../guides/deploying.md) has ONNX Runtime, OpenVINO, TensorRT and MegEngine Lite."""

CHECKPOINTS = """\
Accuracy is what the publisher states, for the preprocessing of the same table.

```{catalog} checkpoints $name
```"""


def variant_page(model: ModelSpec) -> str:
    """Return the page of a variant."""
    values = {
        "name": model.name,
        "repository": REPOSITORY,
        "channels": model.architecture.in_chans,
        "size": model.architecture.image_size,
        "notes": model.notes or "",
    }
    use = PRETRAINED
    if model.default is None:
        use = UNTRAINED
    elif model.checkpoint(model.default).file.integrity == "none":
        use = UNVERIFIED + PRETRAINED
    checkpoints = CHECKPOINTS if model.checkpoints else model.no_weights or ""
    parts = {name: Template(text).substitute(values) for name, text in (("use", use), ("checkpoints", checkpoints))}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values, **parts)


def write_pages(models: Iterable[ModelSpec], folder: Path) -> None:
    """Write the pages into a folder of their own, and remove those of variants that the registry no longer has.

    Two builds, one for each language, may do so at the same time: each page is written whole.
    """
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{model.name}.md": variant_page(model) for model in models}
    for path in set(folder.glob("*.md")) - set(pages):
        path.unlink(missing_ok=True)
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # Sphinx reads again what is newer
            write_page(path, text)


def write_page(path: Path, text: str) -> None:
    atomic_write(path, lambda stream: stream.write(text.encode()), fsync=False)
