"""The avatar inside frameworks for voice agents, and the agents that a call speaks to."""
