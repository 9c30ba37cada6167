"""One file per story of two checkpoints, named like its rule: `make(trained, digits)` gives the two that are saved.

`trained` is the healthy network in eval mode, `digits` the images that it was trained on. `FINDS` lists every finding
of diff as (rule, severity, layer), the layer None for the whole file.
"""
