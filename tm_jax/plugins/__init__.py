"""The avatar inside other people's frameworks, over the session interface alone."""
