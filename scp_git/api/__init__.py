"""The module-level functions, a module for each family of records."""
