"""How two clouds of embeddings lie to each other: measures, the report that compares them, its figures and its page."""
