"""What is examined: layers, checkpoints, pairs of them, and models that ran.

Readers (`bncheck.checkpoints`) and live models (`bncheck.evaluation`) make these, rules judge them.
Nothing here knows a file format, a rule or a report.
"""
