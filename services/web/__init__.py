"""The dashboard: its source under app/, and the small server of its built files and of the interface's documentation."""
