"""From records and stores to batches: chat templates, loss masks, rows aligned on the fly, examples, packing."""
