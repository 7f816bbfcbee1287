"""What the recipes of published corpora share: where files come from, how rows become records and are kept."""
