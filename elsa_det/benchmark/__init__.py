"""Measures the operator against its peers (tools/benchmark_op.py), and configs side by side (tools/benchmark.py).

The ELSA operator, its module and the backbones: peers take turns in one process and are compared by ratios of medians;
fresh processes repeat that, and the worst ratio counts. ``cases`` says what is measured, ``peers`` builds it,
``measure`` times it in a child process (``worker``) that ``runner`` starts, ``records`` holds the outcome, ``goals``
judges it, ``report`` and ``figure`` show it.

Configs: ``workload`` says what is measured of a config, ``runs`` sets it up and does a step, with ``made_up`` images
where there are no data and ``parts`` to split the time; ``throughput`` lets workloads take turns and reads the memory
of each in a child process (``memory_worker``), ``throughput_report`` shows it.
"""
