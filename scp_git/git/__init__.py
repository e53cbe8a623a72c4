"""The git layer: refs, trees, packs, notes and the view, as bytes and paths.

The only importer of pygit2, which reads objects and git config; everything that is
written is written by our own code, as that alone makes a write durable, atomic and
free of lost updates (see docs/guarantees.md).
"""
