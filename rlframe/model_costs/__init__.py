"""What a model costs: parameters, floating-point operations, memory, by formula and without torch."""
