"""The work of each command, from its options to what it gives. Nothing here prints, opens an output or exits.

A command is a file with `OPTIONS`, the class of what it is asked for, `EXAMPLES`, two lines to type, and
`run(options, progress)`; and a line in COMMANDS.
"""

# What each does, in the order of `bncheck --help`. Its file is imported when it is asked for.
COMMANDS = {
    "inspect": "Show every BatchNorm layer of checkpoints and judge its statistics, without running them.",
    "diff": "Say what happened to the BatchNorm layers between two checkpoints, without running them.",
    "drift": "Run a model on data: do its statistics move, what would train mode cost, do they fit the data?",
    "repeat": "Evaluate again, and in other batches: do the results agree, and if not, what is the cause?",
    "recalibrate": "Write a new checkpoint whose statistics are estimated on data, or copied from another checkpoint.",
    "gate": "Run every configured check on a release, and pass, fail, or say what keeps the gate from a verdict.",
    "config": "Show the configuration that is in effect, and where each value comes from.",
    "rules": "List the rules: what each finds, how severe it is, and what it needs to know.",
    "explain": "Explain a rule, or a parameter of BatchNorm.",
}
