"""One file per defect, named like its rule: `make(trained, digits)` gives what is saved, `FINDS` what is found in it.

`trained` is the healthy network in eval mode, `digits` the images that it was trained on. `FINDS` lists every finding
of inspect as (rule, severity, layer), the layer None for the whole file. What shows with an option alone says so:
`MODEL` is the argument of --model, `DEEP` stands for --deep; `SCRIPTED` is a TorchScript archive.
"""
