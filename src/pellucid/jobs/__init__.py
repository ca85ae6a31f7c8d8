"""What the commands do: each file combines parts of the library into one job and knows no mathematics of its own."""
