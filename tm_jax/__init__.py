"""TalkingMachines in JAX: a streaming, audio-driven talking character."""
