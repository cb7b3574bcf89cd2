"""What a job needs and what the machine has: bytes, seconds and the plan made of both."""
