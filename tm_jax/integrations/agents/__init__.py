"""Voices that answer a caller, behind the events of the OpenAI Realtime protocol."""
