"""Methods: one file or folder each. They import only the base and the engine, never each other."""
