"""Everything that changes weights: adapters, world models, policies, judges."""
