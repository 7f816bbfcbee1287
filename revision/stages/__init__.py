"""What both training stages share around what they learn: what they start from, and what they do with it."""
