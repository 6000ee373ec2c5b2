"""Files in the data directory. Each module opens with the format it reads and writes."""
