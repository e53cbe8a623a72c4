"""Sessions: recording what passes on the bus, and the traces that are stored of it."""
