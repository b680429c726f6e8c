"""What a stage cost in quality: measured before anything is shipped."""
