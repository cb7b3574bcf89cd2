"""One room for each model family."""
