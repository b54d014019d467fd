"""Supervised and preference tailoring with LoRA, on TRL's trainers."""
