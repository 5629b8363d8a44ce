"""Messages and connections of the server."""
