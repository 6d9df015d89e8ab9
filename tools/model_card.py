"""The model card for MegEngine/Hub, in Chinese and English, from the registry.

`python -m tools.model_card > hub/models/repvgg-zoo_vision_repvgg.md`, with REPOSITORY set to where this
repository lies. The rules of that hub: front matter, then one block of code and nothing else, then a section for each
language, of which Chinese is required.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Sequence, Tuple

from repvgg_zoo.cli.describe import BACKENDS
from repvgg_zoo.registry.api import shipped_registry
from repvgg_zoo.registry.names import natural_key
from repvgg_zoo.registry.specs import CheckpointSpec, ModelSpec, Preprocessing

REPOSITORY = "owner/repvgg_zoo"
IMAGENET = "ImageNet-1k"
FIRST = "RepVGG_A0"
OTHER = '# model = megengine.hub.load("{repository}:main", "{name}", pretrained=True)'
Shown = Sequence[Tuple[ModelSpec, CheckpointSpec]]


def card(models: Sequence[ModelSpec]) -> str:
    """The whole card of these variants; those without ImageNet weights are left out."""
    shown = [(model, model.checkpoint(model.default)) for model in models if model.default is not None]
    shown = sorted((pair for pair in shown if pair[1].dataset == IMAGENET), key=lambda pair: natural_key(pair[0].name))
    unproved = [model.name for model, checkpoint in shown if checkpoint.file.integrity == "none"]
    names = (model.name for model, _ in shown if model.name not in (FIRST, *unproved))
    others = "\n".join(OTHER.format(repository=REPOSITORY, name=name) for name in names)
    facts = {"repository": REPOSITORY, "first": FIRST}
    return "\n".join(
        [
            HEAD.format(others=others, **facts),
            *(
                section.format(
                    preparation=_preparation(shown, words),
                    unproved=_listed(unproved, words),
                    rows=_rows(shown),
                    **facts,
                )
                for section, words in ((CHINESE, IN_CHINESE), (ENGLISH, IN_ENGLISH))
            ),
        ]
    )


def _listed(names: Sequence[str], words: Mapping[str, str]) -> str:
    return words["comma"].join(f"`{name}`" for name in names)


def _rows(shown: Shown) -> str:
    """Accuracy as each checkpoint's publisher states it; parameters of the deploy form."""
    rows = []
    for model, checkpoint in shown:
        accuracy = ("-" if value is None else f"{value:g}" for value in (checkpoint.top1, checkpoint.top5))
        cells = (model.name, *accuracy, f"{model.params.deploy / 1e6:.2f} M", checkpoint.tag)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _preparation(shown: Shown, words: Mapping[str, str]) -> str:
    """One line for each way in which pictures are prepared, with the models that are evaluated so."""
    ways: Dict[Preprocessing, List[str]] = {}
    for model, checkpoint in shown:
        ways.setdefault(checkpoint.preprocessing, []).append(model.name)
    lines = []
    for way, names in ways.items():
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (way.mean, way.std))
        facts = {**way._asdict(), "mean": mean, "std": std, "interpolation": words[way.interpolation]}
        lines.append(words["way"].format(models=_listed(names, words), library=BACKENDS[way.backend], **facts))
    return "\n".join(lines)


IN_ENGLISH = {
    "way": "- {models}: short side to {resize} ({library}, {interpolation}), center crop of "
    "{image_size} x {image_size}, {color_order}, values in 0..1, `mean = [{mean}]`, `std = [{std}]`.",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "comma": ", ",
}
IN_CHINESE = {
    "way": "- {models}：短边缩放到 {resize}（{library}，{interpolation}），中心裁剪为 {image_size} x {image_size}，"
    "{color_order} 通道顺序，像素值缩放到 0~1，均值 `[{mean}]`，标准差 `[{std}]`。",
    "bilinear": "双线性插值",
    "bicubic": "双三次插值",
    "comma": "、",
}

HEAD = """\
---
template: hub1
title: RepVGG
summary:
    en_US: Making VGG-style ConvNets great again (pre-trained on ImageNet)
    zh_CN: 重参数化的 VGG 风格卷积网络（ImageNet 预训练权重）
author: the repvgg_zoo authors
tags: [vision, classification]
github-link: https://github.com/{repository}
---

```python
import megengine.hub

model = megengine.hub.load("{repository}:main", "{first}", pretrained=True)
# or any of these variants:
{others}
model.eval()
```
"""

CHINESE = """\
<!-- section: zh_CN -->

仓库的默认分支是 `main`，因此 `:main` 不能省略。权重来自各发布者，下载后按注册表中的 sha256（或其前缀）校验，再加载。
以下模型的权重没有公布校验值，须先设置环境变量 `REPVGG_ZOO_ALLOW_UNVERIFIED=1` 才能使用：{unproved}。

各模型的输入预处理如下（与权重发布者的评测方式一致）：

{preparation}

`repvgg_zoo.preprocess(model)` 会按所用权重完成以上预处理，`repvgg_zoo.predict` 则直接给出类别名和概率。
`hub.load` 之后即可 `import repvgg_zoo`。

下面是一段处理一张图片的样例代码。

```python
# 从 MegEngine 数据站下载示例图片
import urllib.request

urllib.request.urlretrieve("https://data.megengine.org.cn/images/cat.jpg", "cat.jpg")

import repvgg_zoo

for prediction in repvgg_zoo.predict(model, "cat.jpg", topk=5):
    print(prediction.label, prediction.probability)

# 也可以分步进行
import megengine
import megengine.functional as F

image = repvgg_zoo.preprocess(model)("cat.jpg")  # CHW，float32
logits = model(megengine.Tensor(image[None]))  # CHW -> 1CHW
probs = F.softmax(logits)
print(probs)
```

部署时，把每个块的三个分支合并为一个 3x3 卷积，输出不变，速度更快：

```python
deployed = repvgg_zoo.to_deploy(model)
print(repvgg_zoo.compare_forms(model))  # 合并前后各块输出的相对误差
```

### 模型描述

RepVGG 训练时每个块由 3x3 卷积、1x1 卷积和恒等映射三个分支组成，推理时等价地合并为单个 3x3 卷积（结构重参数化），
整个网络只剩 3x3 卷积和 ReLU。

下表是各模型默认权重在 ImageNet 验证集上的单 crop 准确率（%），数值由权重的发布者给出，“-”表示未公布；参数量指合并后的
部署结构。其他发布者的权重见 `megengine.hub.help("{repository}:main", "{first}")`。

| 模型 | Top1 acc | Top5 acc | 参数量 | 权重 |
| --- | --- | --- | --- | --- |
{rows}

### 参考文献

 - [RepVGG: Making VGG-style ConvNets Great Again](https://arxiv.org/abs/2101.03697),
   Xiaohan Ding, Xiangyu Zhang, Ningning Ma, Jungong Han, Guiguang Ding, Jian Sun; CVPR 2021, pp. 13733-13742
"""

ENGLISH = """\
<!-- section: en_US -->

The repository's branch is `main`, so `:main` cannot be left out. Weights come from their publishers, and are verified
against the registry's sha256, or the part of it that is published, before they are loaded. No digest is published for
these, which are refused until you set `REPVGG_ZOO_ALLOW_UNVERIFIED=1`: {unproved}.

Each model expects its input prepared as the publisher of its weights evaluated it:

{preparation}

`repvgg_zoo.preprocess(model)` does this for the weights at hand, and `repvgg_zoo.predict` goes on to the names and
probabilities of the classes. After `hub.load`, `import repvgg_zoo` works.

Here's a sample execution.

```python
# Download an example image from the megengine data website
import urllib.request

urllib.request.urlretrieve("https://data.megengine.org.cn/images/cat.jpg", "cat.jpg")

import repvgg_zoo

for prediction in repvgg_zoo.predict(model, "cat.jpg", topk=5):
    print(prediction.label, prediction.probability)

# or step by step
import megengine
import megengine.functional as F

image = repvgg_zoo.preprocess(model)("cat.jpg")  # CHW, float32
logits = model(megengine.Tensor(image[None]))  # CHW -> 1CHW
probs = F.softmax(logits)
print(probs)
```

For deployment, the three branches of each block become one 3x3 convolution: the same output, faster.

```python
deployed = repvgg_zoo.to_deploy(model)
print(repvgg_zoo.compare_forms(model))  # how far the two forms differ, by block
```

### Model Description

While it trains, a block of RepVGG has three branches: a 3x3 convolution, a 1x1 convolution and an identity. For
inference they are merged into one 3x3 convolution that computes the same (structural re-parameterisation), which leaves
a network of 3x3 convolutions and ReLU alone.

The table shows the 1-crop accuracy of each model's default weights on the ImageNet validation set in per cent, as their
publisher states it; "-" is not stated. Parameters are those of the merged form. For the weights of other publishers see
`megengine.hub.help("{repository}:main", "{first}")`.

| model | Top1 acc | Top5 acc | params | weights |
| --- | --- | --- | --- | --- |
{rows}

### References

 - [RepVGG: Making VGG-style ConvNets Great Again](https://arxiv.org/abs/2101.03697),
   Xiaohan Ding, Xiangyu Zhang, Ningning Ma, Jungong Han, Guiguang Ding, Jian Sun; CVPR 2021, pp. 13733-13742
"""

if __name__ == "__main__":
    print(card(shipped_registry().models), end="")
