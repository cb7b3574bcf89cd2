"""What the commands share: options, progress, failures."""
