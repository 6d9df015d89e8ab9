"""Fine-tuning networks."""
