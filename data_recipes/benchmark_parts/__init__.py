"""What data_recipes/benchmarks.py is made of: the files and their cells, and a row's question."""
