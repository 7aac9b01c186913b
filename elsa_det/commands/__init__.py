"""The commands, ``elsa-det-train`` and the others: their options, and ``main(argv)`` that gives the exit code."""
