"""A small valid registry, for tests that break it one line at a time."""

SAMPLE = """\
schema: 1
publishers:
  lab:
    publisher: A Lab
    format: safetensors
    layout: official
    form: train
    license: MIT
    official_weights: true
    preprocessing: {image_size: 224, resize: 256, interpolation: bilinear, backend: pillow, color_order: RGB,
                    mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
    provenance: [the lab's page]
variants:
  RepVGG_X1:
    family: RepVGG-X
    architecture: {num_blocks: [1, 2, 4, 1], width_multiplier: [1, 1, 1, 2.5], groups: 2}
    params: {train: 20, deploy: 10}
    macs: {train: 200, deploy: 100}
    paper: {top1: 70.5, source: "table 1"}
    aliases: [my_x1]
    checkpoints:
      lab:
        file: {name: x1.safetensors, sources: ["https://example.org/x1.safetensors"], size: 5,
               sha256: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}
        top1: 71.5
        aliases: [x1.lab_in1k]
      other:
        file: {name: x1.pth, sources: ["files/x1.pth", "gdrive:0123456789abc"], sha256_prefix: "89abcdef"}
        publisher: B
        format: torch
        layout: timm
        form: deploy
        license: MIT
        preprocessing: {image_size: 224, resize: 224, interpolation: bicubic, backend: opencv, color_order: BGR,
                        mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
        provenance: [b]
  RepVGG_X2:
    family: RepVGG-X
    architecture: {num_blocks: [1, 2, 4, 1], width_multiplier: [1, 1, 1, 2.5]}
    params: {train: 40, deploy: 30}
    macs: {train: 400, deploy: 300}
    no_weights: nobody published any
"""
