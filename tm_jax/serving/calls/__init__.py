"""What a call is, whatever carries it."""
