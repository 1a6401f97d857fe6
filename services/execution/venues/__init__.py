"""The venues orders can be sent to: one that is made of this service's own rows, and those beyond the network, behind a port."""
