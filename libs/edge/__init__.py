"""Builds the configuration of Envoy, the one door to the mesh, from the contract."""
