"""Ray as a runtime: connection, nodes, elastic workers, stops."""
