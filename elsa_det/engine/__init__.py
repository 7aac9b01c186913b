"""Running configs: training, evaluation, prediction."""
