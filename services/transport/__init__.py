"""Thin adapters between a `Classifier` and the sockets: HTTP, gRPC, their codecs and metrics."""
