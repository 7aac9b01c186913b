"""Measures the ELSA operator, its module and the backbones against their peers; tools/benchmark_op.py runs it.

Peers take turns in one process and are compared by ratios of medians; fresh processes repeat that, and the worst ratio
counts. ``cases`` says what is measured, ``peers`` builds it, ``measure`` times it in a child process (``worker``) that
``runner`` starts, ``records`` holds the outcome, ``goals`` judges it, ``report`` and ``figure`` show it.
"""
