"""The small world: drawn scenes, and a model, LoRAs and a judge trained on them. See README.md."""
