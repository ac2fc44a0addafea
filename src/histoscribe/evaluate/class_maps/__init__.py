"""Class maps of benchmarks, frozen before the first test; read by `evaluate.class_map`."""
