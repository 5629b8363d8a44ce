"""What training and streaming need on a mesh of devices that are not there."""
