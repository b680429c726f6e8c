"""What meets each matrix is observed; scales are chosen."""
