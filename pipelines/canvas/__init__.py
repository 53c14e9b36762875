"""The Canvas world: its drawings, its recipe, and the trained pipelines it ships."""
