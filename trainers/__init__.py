"""Programs: deepspeed trainers/<name>.py."""
