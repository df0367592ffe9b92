"""The page of a comparison: its pictures, its thumbnails and its template."""
