"""Uses megengine.hub as a user would, in its own process: ``python -I tour.py JSON``; prints the results as JSON.

JSON: ``repo``, ``options`` (of each hub call, such as protocol), ``digits`` (the test images), ``load``.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict

SMALL = {"features_only": True, "out_indices": (0, 1)}  # the large variants take long to initialize
WHOLE = ("RepVGG_A0", "RepVGG_N0")
ALIASES = ("repvgg_b1g2", "RepVGG-B1g2", "create_RepVGG_B1g2", "b1g2", "RepVGG_B1g2.openmmlab")


def main(job: Dict[str, Any]) -> Dict[str, Any]:
    import megengine
    import megengine.hub as hub

    repo, options, path = job["repo"], job["options"], list(sys.path)
    seen: Dict[str, Any] = {"list": hub.list(repo, **options)}
    seen["help"] = {name: hub.help(repo, name, **options) for name in (*seen["list"], *ALIASES)}
    seen["before_load"] = "repvgg_zoo.builder" in sys.modules
    seen["loaded"] = {}
    for name in (*seen["list"], "repvgg_b1g2") if job["load"] else ():
        network = hub.load(repo, name, pretrained=False, **({} if name in WHOLE else SMALL), **options)
        seen["loaded"][name] = [type(network).__name__, network.spec.name]

    import numpy as np

    import repvgg_zoo

    trained = hub.load(repo, "RepVGG_N0", pretrained=True, **options)
    with np.load(job["digits"], allow_pickle=False) as arrays:
        to_input = repvgg_zoo.preprocess(trained)
        inputs = np.stack([to_input(image) for image in arrays["images"]])
        labels = arrays["labels"]
    for form, network in (("train", trained), ("deploy", hub.load(repo, "RepVGG_N0", True, deploy=True, **options))):
        seen[form] = int((network(megengine.Tensor(inputs)).numpy().argmax(1) == labels).sum())

    seen["path_is_as_before"] = sys.path == path
    seen["homes"] = sorted({m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "repvgg_zoo"})
    seen["strangers"] = [name for name in sys.modules if "hubconf" in name]
    return seen


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
