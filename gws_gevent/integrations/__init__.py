"""Where other frameworks and servers plug in: one module each, which needs that package and nothing else of this folder."""
