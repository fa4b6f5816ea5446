"""Stage report: one self-contained HTML file, and the figures on the terminal."""
