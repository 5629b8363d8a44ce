"""The real-time server: protocol, pacing, engine, calls, transports."""
