"""The loop over sections and steps, and what it carries along."""
