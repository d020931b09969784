"""What was done once to make what the packages ship; no part of the wheel."""
