"""What a recipe loses against fp32, and whether it may."""
