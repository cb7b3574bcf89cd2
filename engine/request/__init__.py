"""What is asked for: requests, their sections, prompts, guides and packing schedules."""
