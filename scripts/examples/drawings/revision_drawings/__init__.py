"""A dual encoder of SVG programs and texts: the example of docs/beyond-images.md."""
