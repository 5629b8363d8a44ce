"""The small streaming speech encoder of `nano`."""
