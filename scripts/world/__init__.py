"""The small world: seeded scenes with known attributes, their pictures and their captions."""
