"""The only place that loads weights: policies, world models, judges. Model units stay inside."""
