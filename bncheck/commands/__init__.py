"""The work of each command, from its options to a report. Nothing here prints, opens an output or exits."""
