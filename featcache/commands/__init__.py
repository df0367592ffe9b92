"""The commands `bin/embed` and `bin/cache`; only here are arguments parsed and lines printed."""
