"""Networks: what a sampler evaluates and a trainer trains."""
