"""Side-by-side measurements of the mesh: `python -m bench [NAME]`."""
